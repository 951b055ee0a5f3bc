//! `run --trace` writes what Chrome's viewer and Perfetto read.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("edgelm").unwrap();
    command.env_remove("EDGELM_THREADS").env_remove("EDGELM_ISA").env_remove("RUST_LOG").args(arguments);
    command
}

fn trace(model: &str, path: &Path, threads: &str) -> Value {
    let path = path.to_str().unwrap();
    let run = ["run", model, "--tokens", "1,2,3,4,5,6,7", "--ignore-eos", "-n", "4", "--threads", threads];
    command(&[&run[..], &["--trace", path]].concat()).assert().success();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ends(event: &Value) -> (f64, f64) {
    let start = event["ts"].as_f64().unwrap();
    (start, start + event["dur"].as_f64().unwrap())
}

/// Microseconds with a fraction, as f64: a nanosecond of rounding is allowed.
fn contains(outer: &Value, inner: &Value) -> bool {
    let (outer, inner) = (ends(outer), ends(inner));
    outer.0 <= inner.0 + 1e-3 && inner.1 <= outer.1 + 1e-3
}

#[test]
fn spans_nest_and_bytes_are_those_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    let model = model.to_str().unwrap();
    command(&["quantize", "demo", "-o", model, "--format", "Q8_0"]).assert().success();
    for threads in ["1", "2"] {
        let trace = trace(model, &folder.path().join("trace.json"), threads);
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |category: &str| events.iter().filter(|event| event["cat"] == category).collect::<Vec<_>>();
        let rows = events.iter().filter(|event| event["ph"] == "M" && event["name"] == "thread_name").count();
        assert_eq!(rows, 1 + threads.parse::<usize>().unwrap());

        let (steps, operators, parts) = (of("step"), of("operator"), of("part"));
        let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["prefill", "decode", "decode", "decode"]);
        assert_eq!(steps[0]["args"]["tokens"], 7);
        assert!(steps.windows(2).all(|pair| ends(pair[0]).1 <= ends(pair[1]).0));
        for operator in &operators {
            let around = steps.iter().filter(|step| contains(step, operator)).count();
            assert_eq!(around, 1, "{operator}");
            for key in ["bytes", "operations", "gb_per_second", "gops", "share_of_limit"] {
                assert!(operator["args"][key].as_f64().unwrap() > 0.0, "{key}: {operator}");
            }
        }
        assert!(operators.windows(2).all(|pair| ends(pair[0]).1 <= ends(pair[1]).0 + 1e-3), "operators overlap");
        assert!(parts.len() >= operators.len());
        let mut next = 0;
        for part in &parts {
            while !contains(operators[next], part) || operators[next]["name"] != part["name"] {
                next += 1;
            }
        }

        // The demo model's embedding is its head: every packed weight is read once per token.
        let bench = command(&["bench", model, "-p", "0", "-n", "1", "-r", "1", "--json"]).assert().success();
        let row: Value = serde_json::from_slice(&bench.get_output().stdout).unwrap();
        let per_token = row[0]["gb_per_second"].as_f64().unwrap() / row[0]["tokens_per_second"].as_f64().unwrap();
        for step in &steps {
            let inside = operators.iter().filter(|operator| contains(step, operator));
            let weights = inside.clone().filter(|operator| operator["name"].as_str().unwrap().starts_with("matmul"));
            let bytes: f64 = weights.map(|operator| operator["args"]["bytes"].as_f64().unwrap()).sum();
            assert!((bytes / 1e9 / per_token - 1.0).abs() < 1e-9, "{bytes} {per_token}");
            let mut layers: Vec<_> = inside.filter_map(|operator| operator["args"]["layer"].as_u64()).collect();
            layers.dedup();
            assert_eq!(layers, [0, 1, 2, 3]);
        }
    }
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_before_the_work() {
    let failed = command(&["run", "demo", "hi", "-n", "4", "--trace", "/no/such/folder/t.json"]).assert().failure();
    let output = failed.get_output();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("error: cannot write `/no/such/folder/t.json`") && output.stdout.is_empty(), "{stderr}");
}
