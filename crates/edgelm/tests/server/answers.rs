//! The server on the built-in model: many requests at once say what each says alone.

use super::process::Server;
use serde_json::{Value, json};
use std::{process::Command, thread};

/// Of any length; the beginning is the same for all.
fn request(index: usize) -> Value {
    let prompt = format!("{}{}", "The harbour was quiet that morning. ".repeat(20), "A gull cried. ".repeat(index));
    json!({
        "model": "demo", "prompt": prompt, "max_tokens": 12 + index, "seed": index, "ignore_eos": true,
        "temperature": if index.is_multiple_of(2) { 0.0 } else { 0.8 },
    })
}

fn text(answer: &(u16, Value)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["choices"][0]["text"].as_str().unwrap().to_owned()
}

fn cached(answer: &(u16, Value)) -> (u64, u64) {
    let usage = &answer.1["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (cached, usage["prompt_tokens"].as_u64().unwrap())
}

#[test]
fn neighbours_and_kept_prompts_change_nothing() {
    for kv in ["q8", "f16"] {
        let alone: Vec<_> = {
            let server = Server::start(&["--kv", kv, "--parallel", "1"]);
            (0..8).map(|index| server.post("/v1/completions", &request(index))).collect()
        };
        assert_eq!(cached(&alone[0]).0, 0);
        let (had, all) = cached(&alone[1]);
        assert!(had >= all - 10, "the second begins as the first: {had} of {all}");
        let server = Server::start(&["--kv", kv, "--parallel", "5"]);
        for round in 0..2 {
            let together: Vec<_> = thread::scope(|scope| {
                let server = &server;
                let ask = |index| scope.spawn(move || server.post("/v1/completions", &request(index)));
                let requests: Vec<_> = (0..8).map(ask).collect();
                requests.into_iter().map(|request| request.join().unwrap()).collect()
            });
            for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(text(together), text(alone), "{kv}, request {index}, round {round}");
            }
            if round == 1 {
                assert!(together.iter().all(|answer| cached(answer).0 + 1 == cached(answer).1), "all kept");
            }
        }
        // Choices are requests with seeds in a row.
        let mut choices = request(3);
        choices["n"] = 3.into();
        let (status, answer) = server.post("/v1/completions", &choices);
        assert_eq!((status, &answer["choices"][0]["text"]), (200, &alone[3].1["choices"][0]["text"]));
    }
}

#[test]
fn a_budget_refuses_by_name_what_never_fits() {
    let server = Server::start(&["--kv", "f16", "--kv-budget", "600KB"]);
    let (status, answer) = server.post("/v1/completions", &json!({"model": "demo", "prompt": "a", "max_tokens": 200}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("kv_budget_exceeded")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("600000 bytes"), "{answer}");
    let answer = server.post("/v1/completions", &json!({"model": "demo", "prompt": "Once", "max_tokens": 5}));
    assert!(!text(&answer).is_empty());
}

/// Status, stdout and stderr of a command that ends by itself.
fn edgelm(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_edgelm")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn settings_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serve.toml");
    let file = path.to_str().unwrap();
    std::fs::write(&path, "model = \"demo\"\nqueue = 5\nkv-budget = \"600KB\"\nkv = \"f16\"\n").unwrap();
    let (status, first, _) = edgelm(&["serve", "--config", file, "--queue", "6", "--print-config"]);
    assert_eq!(status, 0);
    for line in ["model = [\"demo\"]", "queue = 6", "kv-budget = \"600KB\"", "port = 8080"] {
        assert!(first.lines().any(|other| other == line), "{line}\n{first}");
    }
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &first).unwrap();
    assert_eq!(edgelm(&["serve", "--config", again.to_str().unwrap(), "--print-config"]).1, first);

    std::fs::write(&path, "queue = 5\n\nprot = 1\n").unwrap();
    let (status, _, error) = edgelm(&["serve", "demo", "--config", file]);
    assert!(status == 2 && error.contains("serve.toml:3: `prot` is not a flag"), "{error}");
    std::fs::write(&path, "queue = -1\n").unwrap();
    let (status, _, error) = edgelm(&["serve", "demo", "--config", file]);
    assert!(status == 2 && error.contains("serve.toml:1: `queue`"), "{error}");

    // What the file says is done.
    std::fs::write(&path, "kv-budget = \"600KB\"\nkv = \"f16\"\n").unwrap();
    let server = Server::start(&["--config", file]);
    let (status, answer) = server.post("/v1/completions", &json!({"model": "demo", "prompt": "a", "max_tokens": 200}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("kv_budget_exceeded")));
}

#[test]
fn keys_are_made_and_shown_and_open_doors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let file = path.to_str().unwrap();
    let (status, key, note) = edgelm(&["keys", "new", "--api", "--name", "ci", "--append", file]);
    assert_eq!(status, 0, "{note}");
    let key = key.trim();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(key.starts_with("elm_") && text.starts_with("ci:use:sha256:") && !text.contains(&key[4..]));
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777, 0o600);
    let (status, _, error) = edgelm(&["keys", "new", "--api", "--name", "ci", "--append", file]);
    assert!(status == 1 && error.contains("`ci`"), "{error}");
    let (_, shown, _) = edgelm(&["--json", "keys", "show", "--api", file]);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), json!([{"name": "ci", "scope": "use"}]));
    assert_eq!(edgelm(&["keys", "new"]).0, 2);

    let server = Server::start(&["--api-key-file", file]);
    assert_eq!(server.post("/tokenize", &json!({"content": "a"})).0, 401);
    assert_eq!(server.post_with("/tokenize", &format!("x-api-key: {key}\r\n"), &json!({"content": "a"})).0, 200);
}

#[test]
fn doors_that_would_stand_open_are_refused_with_a_way_out() {
    let (status, _, error) = edgelm(&["serve", "demo", "--host", "0.0.0.0", "--port", "0"]);
    assert!(status == 1 && error.contains("`0.0.0.0:0`") && error.contains("--insecure-bind"), "{error}");
    let (status, _, error) = edgelm(&["serve", "demo", "--client-ca", "x"]);
    assert!(status == 2 && error.contains("--tls-cert"), "{error}");
    let (status, _, error) = edgelm(&["serve", "demo", "--port", "0", "--tls-cert", "/none/x.pem", "--tls-key", "y"]);
    assert!(status == 1 && error.contains("/none/x.pem"), "{error}");
}

#[test]
fn models_of_a_file_have_adapters_and_guesses_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("serve.toml");
    let text = "[[models]]\npath = \"demo\"\nname = \"a\"\nlookup = true\n\n[[models]]\npath = [\"none.gguf\", \"demo\"]\nname = \"b\"\n";
    std::fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_edgelm"));
    command.args(["serve", "--port", "0", "--config"]).arg(&config);
    let server = Server::run(command);
    for id in ["a", "b"] {
        let body = json!({"model": id, "prompt": "Once", "max_tokens": 3});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!((status, &answer["model"]), (200, &json!(id)), "{answer}");
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_edgelm"));
    command.args(["serve", "--port", "0", "--name", "x", "--config"]).arg(&config);
    let Err((code, lines)) = Server::try_run(command) else { panic!("whose name is it?") };
    assert!(code == Some(2) && lines.iter().any(|line| line.contains("in its table")), "{code:?} {lines:?}");
}
