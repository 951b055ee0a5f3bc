//! The official clients of OpenAI, Ollama and Anthropic against `edgelm serve demo`: `tests/clients/`.

#![allow(clippy::unwrap_used)]

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Ends the server with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn official_clients_are_understood() {
    let python = env::var("EDGELM_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let packages = ["-c", "import anthropic, grpc_health, grpc_reflection, jsonschema, ollama, openai"];
    let has_packages = Command::new(&python).args(packages).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !has_packages {
        println!("SKIPPED: `{python}` lacks the packages of tests/clients/requirements.txt");
        return;
    }
    let server = Command::new(env!("CARGO_BIN_EXE_edgelm"))
        .args(["serve", "demo", "--port", "0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Server(server);
    let lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let url = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned))
        .expect("the server says where it listens");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/run.py");
    // A proxy of the machine is not for this.
    let status = Command::new(python).arg(script).args([&url, "demo"]).env("NO_PROXY", "127.0.0.1").status().unwrap();
    assert!(status.success(), "see the lines that begin with FAILED");
}
