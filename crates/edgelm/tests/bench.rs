//! `bench`: its keys, and how the other side of `--vs` may fail.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("edgelm").unwrap();
    command.env_remove("EDGELM_THREADS").env_remove("EDGELM_ISA").env_remove("RUST_LOG").args(arguments);
    command
}

fn json(arguments: &[&str]) -> Value {
    let output = command(arguments).arg("--json").assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

fn error(arguments: &[&str], status: i32) -> String {
    let output = command(arguments).assert().code(status).get_output().clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error line: {stderr}")).into()
}

fn quantized(folder: &Path) -> String {
    let path = folder.join("m.gguf").to_str().unwrap().to_owned();
    command(&["quantize", "demo", "-o", &path, "--format", "Q4_0"]).assert().success();
    path
}

#[test]
fn rows_stand_beside_the_limits_of_the_machine() {
    let rows = json(&["bench", "demo", "-p", "8", "-n", "2", "-b", "1,2", "-d", "0,16", "-r", "2"]);
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp8", "tg2", "tg2 b2", "pp8 @ d16", "tg2 @ d16", "tg2 b2 @ d16"]);
    for row in rows.as_array().unwrap() {
        let is_prefill = row["test"].as_str().unwrap().starts_with("pp");
        let (own, others) = if is_prefill { ("tops", "gb_per_second") } else { ("gb_per_second", "tops") };
        let keys = ["tokens_per_second", "limit", "fraction_of_limit", "threads", "ttft_ms", own];
        assert!(keys.iter().all(|key| row[key].as_f64().unwrap() > 0.0), "{row}");
        assert!(row["stddev"].as_f64().unwrap() >= 0.0 && row[others].is_null(), "{row}");
        let share = row[own].as_f64().unwrap() / row["limit"].as_f64().unwrap();
        assert!((row["fraction_of_limit"].as_f64().unwrap() / share - 1.0).abs() < 1e-9, "{row}");
        assert!(row.get("ratio").is_none());
    }
}

/// A stand-in for llama-bench.
#[cfg(unix)]
fn program(folder: &Path, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path: PathBuf = folder.join("llama-bench");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
#[cfg(unix)]
fn the_other_side_gets_the_same_test_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let log = folder.path().join("log");
    let script = format!("echo \"$@\" >> {}; echo '[{{\"avg_ts\": 10.0}}]'", log.display());
    let other = program(folder.path(), &script);
    let rows =
        json(&["bench", &model, "-p", "8", "-n", "2", "-r", "3", "--kv", "q8", "--threads", "2", "--vs", &other]);
    for row in rows.as_array().unwrap() {
        assert_eq!(row["vs_tokens_per_second"], 10.0);
        assert_eq!(row["vs_stddev"], 0.0);
        let ratio = row["tokens_per_second"].as_f64().unwrap() / 10.0;
        assert!((row["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{row}");
    }
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 6);
    for (line, test) in lines.iter().zip(["-p 8 -n 0", "-p 8 -n 0", "-p 8 -n 0", "-p 0 -n 2", "-p 0 -n 2", "-p 0 -n 2"])
    {
        assert!(
            line.contains(&model) && line.contains(test) && line.contains("-t 2") && line.contains("-ctk q8_0"),
            "{line}"
        );
    }
}

#[test]
#[cfg(unix)]
fn failures_of_the_other_side_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = quantized(folder.path());
    let bench = |other: &str, status| error(&["bench", &model, "-p", "8", "-n", "0", "-r", "1", "--vs", other], status);
    assert!(bench("/no/such/program", 1).contains("cannot start `/no/such/program`"));
    let line = bench(&program(folder.path(), "echo 'cannot load: no vocabulary' >&2; exit 3"), 1);
    assert!(line.contains("exit status: 3") && line.contains("no vocabulary"), "{line}");
    let line = bench(&program(folder.path(), "kill -SEGV $$"), 1);
    assert!(line.contains("signal: 11"), "{line}");
    let line = bench(&program(folder.path(), "echo hello"), 1);
    assert!(line.contains("not JSON"), "{line}");
    let line = error(&["bench", "demo", "--vs", "x"], 2);
    assert!(line.contains(".gguf"), "{line}");
    let line = error(&["bench", &model, "-b", "2", "--vs", "x"], 2);
    assert!(line.contains("-b"), "{line}");
}
