//! The server on the built-in model: many requests at once say what each says alone.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
};

/// A server that ends with the value.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_edgelm"))
            .args(["serve", "demo", "--port", "0", "--threads", "2"])
            .args(arguments)
            .env("EDGELM_OFFLINE", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the server ended").unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        // Somebody has to read on, or the server would wait for a full pipe.
        thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
