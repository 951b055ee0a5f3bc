//! What `--forward-dir` keeps for a collector that is away: through the death of the process, and on a full disk.

use super::process::Server;
use serde_json::json;
use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// For a collector that nobody runs. `limit`: see [`Server::with_file_limit`].
fn start(folder: &Path, limit: Option<u32>) -> Server {
    let folder = folder.to_str().unwrap();
    let arguments = ["--otlp-endpoint", "http://127.0.0.1:9", "--forward-dir", folder, "--keep-inputs"];
    Server::with_file_limit(limit, &arguments)
}

fn ask(server: &Server) {
    let body = json!({"model": "demo", "prompt": "The harbour", "max_tokens": 2});
    assert_eq!(server.post("/v1/completions", &body).0, 200);
}

/// Waits for a metric to be what is wanted.
fn eventually(server: &Server, name: &str, is_right: impl Fn(f64) -> bool) -> f64 {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, text) = server.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap());
        if is_right(value) {
            return value;
        }
        assert!(Instant::now() < end, "{name}: {value}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_waits_outlives_a_server_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let server = start(&spool, None);
    ask(&server);
    ask(&server);
    // Spans in one batch or two, and the inputs in another.
    let waiting = eventually(&server, "edgelm_forward_waiting_batches", |batches| batches >= 2.0);
    server.end("-KILL");
    let server = start(&spool, None);
    let again = eventually(&server, "edgelm_forward_waiting_batches", |_| true);
    assert!(again >= waiting, "{again} of {waiting}");
    server.end("-TERM");
    for entry in fs::read_dir(&spool).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|seven| seven == b"harbour"), "encrypted");
    }
}

#[test]
fn a_full_disk_costs_telemetry_and_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("spool"), Some(1));
    ask(&server);
    eventually(&server, "edgelm_forward_dropped_batches_total{reason=\"unwritten\"}", |batches| batches >= 1.0);
    ask(&server);
    assert_eq!(server.get("/health").0, 200);
}
