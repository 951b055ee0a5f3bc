//! What happens to a server from outside: told to end under load, its files changed under it, too little memory.

use super::process::Server;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const ASSET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/mica-5m");

/// A copy of the built-in model that may be damaged.
fn model(folder: &Path) -> PathBuf {
    let copy = folder.join("mica");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(ASSET).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// All that comes back; `None` where there was no connection.
fn raw(address: &str, path: &str, body: &Value) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let body = body.to_string();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    // What came before an error counts.
    let _ = stream.read_to_string(&mut answer);
    Some(answer)
}

#[test]
fn who_was_let_in_is_answered_when_the_server_is_told_to_end() {
    let mut server = Server::start(&["--parallel", "4"]);
    let address = server.address.clone();
    let ask = |index: usize| {
        let address = address.clone();
        thread::spawn(move || {
            let (is_stream, prompt) = (index.is_multiple_of(2), "The harbour ".repeat(index + 1));
            let body =
                json!({"model": "demo", "prompt": prompt, "max_tokens": 150, "ignore_eos": true, "stream": is_stream});
            (is_stream, raw(&address, "/v1/completions", &body))
        })
    };
    let clients: Vec<_> = (0..24).map(ask).collect();
    // Some run and some wait.
    let begin = Instant::now();
    while server
        .get("/metrics")
        .1
        .lines()
        .all(|line| !line.starts_with("edgelm_num_requests_waiting") || line.ends_with(" 0"))
    {
        assert!(begin.elapsed() < Duration::from_secs(30), "nothing ever waits");
    }
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut whole = 0;
    for client in clients {
        let (is_stream, answer) = client.join().unwrap();
        // Who came too late for a connection has sent nothing that was accepted.
        let Some(answer) = answer.filter(|answer| !answer.is_empty()) else { continue };
        let is_whole = match is_stream {
            true => answer.contains("data: [DONE]") || answer.contains("\"error\""),
            false => answer.contains("\"finish_reason\":\"length\"") || answer.contains("\"error\""),
        };
        assert!(is_whole, "half an answer: {answer}");
        whole += usize::from(answer.starts_with("HTTP/1.1 200"));
    }
    assert!(whole >= 8, "{whole} answers are whole");
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}

/// Waits for `/health` to say this.
fn health(server: &Server, what: &str, is: impl Fn(u16, &Value) -> bool) {
    let begin = Instant::now();
    loop {
        let (status, text) = server.get("/health");
        let health: Value = serde_json::from_str(&text).unwrap();
        if is(status, &health) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(40), "not {what}: {health}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_model_that_is_replaced_on_disk_is_told_and_the_loaded_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let server = Server::serve(&model, &["--name", "m", "--health-interval", "1"]);
    let ask =
        || server.post("/v1/completions", &json!({"model": "m", "prompt": "Once", "max_tokens": 8, "temperature": 0}));
    let before = ask();
    assert_eq!(before.0, 200);
    let (weights, new) = (model.join("model.safetensors"), model.join("new"));
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&new, &bytes).unwrap();
    fs::rename(&new, &weights).unwrap();
    health(&server, "replaced", |status, health| {
        status == 200 && health["models"][0]["health"]["files_replaced"] == true
    });
    assert_eq!(ask().1["choices"], before.1["choices"], "what is loaded is the old file");
}

#[test]
fn weights_that_are_overwritten_while_mapped_are_found_and_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let weights = model.join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    let server = Server::serve(&model, &["--name", "m", "--health-interval", "1"]);
    let ask = || server.post("/v1/completions", &json!({"model": "m", "prompt": "Once", "max_tokens": 2}));
    assert_eq!(ask().0, 200);
    // In place, so that what is mapped changes: all but the header.
    let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
    let header = usize::try_from(u64::from_le_bytes(good[..8].try_into().unwrap())).unwrap() + 8;
    let bad: Vec<u8> = good[header..].iter().rev().copied().collect();
    file.write_all_at(&bad, header as u64).unwrap();
    health(&server, "found", |status, health| status == 503 && health["status"] != "ok");
    let (status, answer) = ask();
    assert_eq!(status, 503, "{answer}");
    assert_eq!(server.get("/metrics").0, 200, "the process goes on");
}

/// A command that a shell runs after `first`.
fn after(first: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_edgelm")]).args(arguments);
    command
}

/// Servers under limits of memory, from what the program starts in at all to 125 steps more: each refuses to start, and says what
/// for, or answers four clients at once and lives on.
fn each_refuses_or_answers(step_mib: u64, reason: &str, limited: impl Fn(u64, &[&str]) -> Command) {
    let starts = |mib: u64| limited(mib, &["--version"]).output().unwrap().status.success();
    let least = (1..200).map(|step| step * step_mib).find(|&mib| starts(mib)).unwrap();
    let (mut refused, mut answered) = (0, 0);
    for steps in [0, 1, 3, 5, 8, 10, 15, 25, 50, 125] {
        let mib = least + steps * step_mib;
        match Server::try_run(limited(mib, &["serve", "demo", "--port", "0", "--threads", "1"])) {
            Ok(server) => {
                let body = json!({"model": "demo", "prompt": "The harbour ".repeat(100), "max_tokens": 4});
                thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| assert_eq!(server.post("/v1/completions", &body).0, 200, "{mib} MiB"));
                    }
                });
                assert_eq!(server.get("/health").0, 200, "{mib} MiB");
                answered += 1;
            }
            Err((code, lines)) => {
                assert_eq!(code, Some(1), "{mib} MiB: {lines:?}");
                let why = lines.iter().find(|line| line.starts_with("error: ")).expect("a reason");
                assert!(why.contains(reason) || why.contains("memory"), "{mib} MiB: {why}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && answered > 0, "{refused} refused, {answered} answered");
}

#[test]
fn too_little_address_space_is_refused_with_a_reason() {
    each_refuses_or_answers(20, "RLIMIT_AS", |mib, arguments| after(&format!("ulimit -v {}", mib * 1024), arguments));
}

/// A control group of this test's own.
struct Group {
    folder: PathBuf,
    limit: &'static str,
}

impl Group {
    /// Where the system lets this process make one.
    fn new() -> Option<Self> {
        let name = format!("edgelm-test-{}", std::process::id());
        for (tree, limit) in [("memory", "memory.limit_in_bytes"), ("", "memory.max")] {
            let folder = Path::new("/sys/fs/cgroup").join(tree).join(&name);
            if fs::create_dir(&folder).is_ok() {
                let group = Self { folder, limit };
                if fs::write(group.folder.join(limit), (1u64 << 30).to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while a process of it ends; an empty group costs nothing.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn a_control_group_with_too_little_memory_is_refused_with_a_reason() {
    let Some(group) = Group::new() else {
        println!("skipped: no control group can be made here");
        return;
    };
    each_refuses_or_answers(4, "control group", |mib, arguments| {
        let (limit, processes) = (group.folder.join(group.limit), group.folder.join("cgroup.procs"));
        after(&format!("echo {} > {} && echo $$ > {}", mib << 20, limit.display(), processes.display()), arguments)
    });
}

/// `serve --write-health-baseline F` on this machine.
fn write_baseline(model: &Path, file: &Path, threads: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelm"));
    command.args(["serve", "--name", "m", "--threads", threads, "--write-health-baseline"]).arg(file).arg(model);
    assert!(command.env("EDGELM_OFFLINE", "1").stderr(Stdio::null()).status().unwrap().success());
}

/// How a server of this model fares with this baseline: `/health`, or the lines that it ended with.
fn with_baseline(model: &Path, file: &Path, more: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelm"));
    command.args(["serve", "--name", "m", "--port", "0", "--health-baseline"]).arg(file).arg(model).args(more);
    match Server::try_run(command) {
        Ok(server) => Ok(serde_json::from_str(&server.get("/health").1).unwrap()),
        Err((code, lines)) => {
            assert_eq!(code, Some(1), "{lines:?}");
            Err(lines.join("\n"))
        }
    }
}

#[test]
fn a_model_is_served_if_it_says_what_the_baseline_has() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (model(folder.path()), folder.path().join("baseline.json"));
    write_baseline(&model, &file, "1");
    let baseline = fs::read_to_string(&file).unwrap();
    // The same bits, however many threads there are; and a file grows by what is new alone.
    write_baseline(&model, &file, "2");
    assert_eq!(fs::read_to_string(&file).unwrap(), baseline);
    let health = with_baseline(&model, &file, &[]).unwrap();
    let first = &health["models"][0]["health"];
    assert_eq!((&first["ok"], &first["baseline"]), (&true.into(), &"the same bits".into()), "{health}");
    // Without the probes that follow, too.
    let health = with_baseline(&model, &file, &["--health-interval", "0", "--threads", "2"]).unwrap();
    assert_eq!(health["models"][0]["health"]["baseline"], "the same bits");
    // Another cache format rounds otherwise.
    let health = with_baseline(&model, &file, &["--kv", "f16"]).unwrap();
    let compared = health["models"][0]["health"]["baseline"].as_str().unwrap();
    assert!(compared.starts_with("only the perplexity"), "{compared}");

    let other = folder.path().join("other.json");
    let parsed: Value = serde_json::from_str(&baseline).unwrap();
    let tampered = |pointer: &str, value: Value| {
        let mut changed = parsed.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        fs::write(&other, changed.to_string()).unwrap();
        with_baseline(&model, &other, &[]).unwrap_err()
    };
    let said = tampered("/models/0/runs/0/logits_sha256", "0".repeat(64).into());
    assert!(said.contains("where the health baseline has") && said.contains("loaded once more"), "{said}");
    let said = tampered("/models/0/digest", format!("sha256:{}", "0".repeat(64)).into());
    assert!(said.contains("its files are sha256:"), "{said}");
    let said = tampered("/models/0/runs", json!([]));
    assert!(said.contains("`runs` is empty"), "{said}");
    // One bit of the weights, by a disk that forgets.
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&weights, &bytes).unwrap();
    let said = with_baseline(&model, &file, &[]).unwrap_err();
    assert!(said.contains("its files are sha256:"), "{said}");
}
