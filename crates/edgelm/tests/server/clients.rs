//! The official clients of OpenAI, Ollama and Anthropic, two hundred schemas, and a short soak, against `edgelm serve demo`:
//! `tests/clients/`.

use super::process::Server;
use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

/// A Python that has the packages of the clients; none where they are not installed.
fn python() -> Option<String> {
    let python = env::var("EDGELM_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let packages = ["-c", "import anthropic, grpc_health, grpc_reflection, jsonschema, ollama, openai"];
    let has_packages = Command::new(&python).args(packages).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !has_packages {
        println!("SKIPPED: `{python}` lacks the packages of tests/clients/requirements.txt");
    }
    has_packages.then_some(python)
}

/// Runs one of the scripts to its end.
fn run(python: &str, script: &str, arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients").join(script);
    // A proxy of the machine is not for this.
    let status = Command::new(python).arg(script).args(arguments).env("NO_PROXY", "127.0.0.1").status().unwrap();
    assert!(status.success(), "see the lines that begin with FAILED or FAULT");
}

#[test]
fn official_clients_are_understood() {
    let Some(python) = python() else { return };
    let server = Server::start(&[]);
    run(&python, "run.py", &[&format!("http://{}", server.address), "demo"]);
}

#[test]
fn mixed_traffic_leaves_no_request_without_an_answer() {
    let Some(python) = python() else { return };
    // Little patience, so that those who stall are let go within the time.
    let patience = ["--header-timeout", "3", "--body-timeout", "3", "--read-timeout", "3"];
    let server = Server::start(&[&patience[..], &["--kv-budget", "48MB"]].concat());
    let (url, pid) = (format!("http://{}", server.address), server.process.id().to_string());
    run(&python, "soak.py", &[&url, "demo", "0.4", "--pid", &pid]);
}
