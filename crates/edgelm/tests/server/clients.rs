//! The official clients of OpenAI, Ollama and Anthropic against `edgelm serve demo`: `tests/clients/`.

use super::process::Server;
use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

#[test]
fn official_clients_are_understood() {
    let python = env::var("EDGELM_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let packages = ["-c", "import anthropic, grpc_health, grpc_reflection, jsonschema, ollama, openai"];
    let has_packages = Command::new(&python).args(packages).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !has_packages {
        println!("SKIPPED: `{python}` lacks the packages of tests/clients/requirements.txt");
        return;
    }
    let server = Server::start(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/run.py");
    // A proxy of the machine is not for this.
    let url = format!("http://{}", server.address);
    let status = Command::new(python).arg(script).args([&url, "demo"]).env("NO_PROXY", "127.0.0.1").status().unwrap();
    assert!(status.success(), "see the lines that begin with FAILED");
}
