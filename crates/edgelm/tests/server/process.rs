//! `edgelm serve demo` as a process of its own.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

/// A server that ends with the value.
pub struct Server {
    pub process: Child,
    /// Host and port.
    pub address: String,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgelm"));
        command.args(["serve", "demo", "--port", "0"]).args(arguments);
        Self::run(command)
    }

    /// Serves a model of a folder.
    pub fn serve(model: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgelm"));
        command.arg("serve").arg(model).args(["--port", "0"]).args(arguments);
        Self::run(command)
    }

    /// One whose files cannot grow beyond a number of blocks of 512 bytes, as on a disk that is full.
    #[cfg(unix)]
    pub fn with_file_limit(blocks: Option<u32>, arguments: &[&str]) -> Self {
        // SIGXFSZ must not end it: then writes beyond the limit fail.
        let script = blocks.map_or(String::new(), |blocks| format!("trap '' XFSZ; ulimit -f {blocks}; "));
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{script}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_edgelm")])
            .args(["serve", "demo", "--port", "0", "--threads", "1", "--health-interval", "0"])
            .args(arguments);
        Self::run(command)
    }

    /// Starts what becomes a server, and waits until that says where it listens.
    pub fn run(command: Command) -> Self {
        Self::try_run(command).unwrap_or_else(|(code, lines)| panic!("the server ended with {code:?}: {lines:?}"))
    }

    /// The same for what may not become one: its status and what it said.
    pub fn try_run(mut command: Command) -> Result<Self, (Option<i32>, Vec<String>)> {
        // Spans go out soon, not after the five seconds that are usual.
        command.env("EDGELM_OFFLINE", "1").env("OTEL_BSP_SCHEDULE_DELAY", "100");
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let Some(line) = lines.next() else { return Err((process.wait().unwrap().code(), said)) };
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once("listening on http://") {
                break rest.split(' ').next().unwrap().to_owned();
            }
            said.push(line);
        };
        // Somebody has to read on, or the server would wait for a full pipe.
        thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, address })
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_with(path, "", body)
    }

    /// `headers`: lines, each with its end.
    pub fn post_with(&self, path: &str, headers: &str, body: &Value) -> (u16, Value) {
        let (address, body) = (&self.address, body.to_string());
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}");
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Sends a signal and waits for the end.
    #[cfg(unix)]
    pub fn end(mut self, signal: &str) {
        Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
