//! The audit log of a server that is killed, filled up and verified, by the command line alone.

use super::process::Server;
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

fn edgelm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgelm")).args(arguments).env("EDGELM_OFFLINE", "1").output().unwrap()
}

fn report(log: &Path, key: &Path, code: i32) -> Value {
    let output = edgelm(&["--json", "audit", "verify", log.to_str().unwrap(), "--trust", key.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `limit`: see [`Server::with_file_limit`].
fn start(log: &Path, key: &Path, limit: Option<u32>, more: &[&str]) -> Server {
    let files = ["--audit-log", log.to_str().unwrap(), "--audit-key", key.to_str().unwrap()];
    Server::with_file_limit(limit, &[&files, more].concat())
}

fn ask(server: &Server) -> u16 {
    server.post("/v1/completions", &json!({"model": "demo", "prompt": "The harbour", "max_tokens": 2})).0
}

#[test]
fn a_server_that_is_killed_leaves_a_log_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (log, key) = (folder.path().join("audit.jsonl"), folder.path().join("key"));
    let made = edgelm(&["keys", "new", "--signing", "--out", key.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let public = folder.path().join("key.pub");
    let shown = edgelm(&["keys", "show", "--signing", public.to_str().unwrap()]);
    assert_eq!(shown.stdout, made.stdout);
    assert!(!edgelm(&["keys", "new", "--signing", "--out", key.to_str().unwrap()]).status.success(), "no key is lost");

    let server = start(&log, &key, None, &["--audit-checkpoint-records", "3"]);
    for _ in 0..5 {
        assert_eq!(ask(&server), 200);
    }
    // The last record comes when its answer is out.
    while fs::read_to_string(&log).unwrap().matches("\"kind\":\"request\"").count() < 5 {
        thread::sleep(Duration::from_millis(10));
    }
    server.end("-KILL");
    let killed = report(&log, &public, 0);
    assert_eq!((&killed["requests"], &killed["is_closed"]), (&json!(5), &json!(false)));
    // As if it had been killed in the middle of a write.
    let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    file.write_all(b"{\"seq\":99,\"time\":\"20").unwrap();
    report(&log, &public, 1);

    let server = start(&log, &key, None, &[]);
    assert_eq!(ask(&server), 200);
    server.end("-TERM");
    let whole = report(&log, &public, 0);
    assert_eq!((&whole["requests"], &whole["is_closed"]), (&json!(6), &json!(true)));
    assert_eq!((&whole["torn_lines"], &whole["unclean_starts"]), (&json!(1), &json!(1)));
    let digest = fs::read_to_string(&log).unwrap().contains("\"model_digest\":\"sha256:");
    assert!(digest, "records name the model's files");

    let changed = fs::read_to_string(&log).unwrap().replacen("\"status\":200", "\"status\":500", 1);
    fs::write(&log, changed).unwrap();
    assert!(!report(&log, &public, 1)["findings"].as_array().unwrap().is_empty());
}

#[test]
fn a_full_disk_refuses_requests_or_does_not() {
    for (policy, expected) in [("refuse", 503), ("continue", 200)] {
        let folder = tempfile::tempdir().unwrap();
        let (log, key) = (folder.path().join("audit.jsonl"), folder.path().join("key"));
        assert!(edgelm(&["keys", "new", "--signing", "--out", key.to_str().unwrap()]).status.success());
        let server = start(&log, &key, Some(8), &["--audit-on-failure", policy]);
        let mut last = 0;
        for _ in 0..40 {
            last = ask(&server);
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(last, expected, "{policy}");
        server.end("-TERM");
        // What is there holds together.
        report(&log, &folder.path().join("key.pub"), 1);
        let text = edgelm(&["audit", "verify", log.to_str().unwrap()]);
        assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stdout));
    }
}
