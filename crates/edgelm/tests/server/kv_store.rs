//! What `--kv-store` keeps through the death of the process, and what a full disk does to it.

use super::process::Server;
use serde_json::{Value, json};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// `limit`: see [`Server::with_file_limit`].
fn start(folder: &Path, limit: Option<u32>, more: &[&str]) -> Server {
    Server::with_file_limit(limit, &[&["--kv-store", folder.to_str().unwrap()], more].concat())
}

/// Text and cached tokens of an answer to a prompt of some 250 tokens; prompts of different `seed` begin differently.
fn ask(server: &Server, seed: u32) -> (String, u64) {
    let prompt = format!("Day {seed}. {}", "The harbour was quiet that morning. A gull cried. ".repeat(20));
    let body = json!({"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let cached: &Value = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), cached.as_u64().unwrap())
}

/// Waits until a metric is what is wanted.
fn eventually(server: &Server, name: &str, is_right: impl Fn(f64) -> bool) -> f64 {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, text) = server.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        let value = line.rsplit(' ').next().unwrap().parse().unwrap();
        if is_right(value) {
            return value;
        }
        assert!(Instant::now() < end, "{line}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn conversations_outlive_a_server_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), None, &["--kv-store-delay", "0.5"]);
    let (text, cached) = ask(&server, 1);
    assert_eq!(cached, 0);
    let (again, kept) = ask(&server, 1);
    assert!(again == text && kept > 192, "{kept}");
    // All of it is written when nobody has asked for a while: as many pages as are in memory.
    eventually(&server, "edgelm_kv_store_writes_total", |pages| pages >= 4.0);
    eventually(&server, "edgelm_kv_store_written_bytes_total", |bytes| bytes >= 10_000.0);
    thread::sleep(Duration::from_millis(300));
    server.end("-KILL");
    let server = start(folder.path(), None, &[]);
    assert_eq!(ask(&server, 1), (text.clone(), kept), "after kill -9");
    let (other, _) = ask(&server, 2);
    let written = eventually(&server, "edgelm_kv_store_writes_total", |_| true);
    assert_eq!(written, 0.0, "not before its time");
    server.end("-TERM");
    let server = start(folder.path(), None, &[]);
    assert_eq!(ask(&server, 2), (other, kept), "who is told to end writes at once");
    server.end("-TERM");
    // Another cache format: nothing of this fits it.
    let server = start(folder.path(), None, &["--kv", "f16"]);
    assert_eq!(ask(&server, 1).1, 0);
}

#[test]
fn what_has_to_go_comes_back_and_a_full_disk_costs_nobody_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    // Room for about one of these prompts.
    let small = ["--kv-budget", "900KB", "--kv", "f16"];
    let server = start(folder.path(), None, &small);
    let texts: Vec<_> = (0..4).map(|seed| ask(&server, seed).0).collect();
    assert_eq!(eventually(&server, "edgelm_kv_store_writes_total", |_| true), 0.0, "each came once");
    for (seed, text) in (0..).zip(&texts) {
        assert_eq!(ask(&server, seed).0, *text);
    }
    for (seed, text) in (0..).zip(&texts) {
        let (again, cached) = ask(&server, seed);
        assert!(again == *text && cached > 128, "{cached}");
    }
    eventually(&server, "edgelm_kv_store_reads_total", |pages| pages >= 8.0);
    server.end("-TERM");

    let full = tempfile::tempdir().unwrap();
    let server = start(full.path(), Some(8), &small);
    for (seed, text) in (0..).zip(&texts).chain((0..).zip(&texts)).chain((0..).zip(&texts)) {
        assert_eq!(ask(&server, seed).0, *text);
    }
    eventually(&server, "edgelm_kv_store_write_failures_total", |pages| pages >= 1.0);
}
