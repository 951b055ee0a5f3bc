//! Queueing, cancelling, crashing, loading and stopping.

use crate::fake::{Fake, Running, Stock, client, events, eventually, read};
use edgelm_serve::{Backend, ServeError, ServerConfig, serve, serve_models};
use futures::StreamExt;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const PATH: &str = "/v1/completions";

fn body(prompt: &str, extra: Value) -> Value {
    let mut body = json!({"model": "org/fake-1", "prompt": prompt, "max_tokens": 50});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// About a second and a half per request if nobody cancels it.
fn slow() -> Fake {
    Fake { token_time: Duration::from_millis(30), eos_after: 50, ..Fake::default() }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let server = Running::start_with(slow(), ServerConfig { parallel: 1, queue: 1, ..ServerConfig::default() }).await;
    let request = |prompt: &str| tokio::spawn(read(server.post(PATH, &body(prompt, json!({"max_tokens": 10})))));
    let first = request("a");
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    let second = request("bb");
    eventually_queued(&server, 1).await;
    let response = server.post(PATH, &body("ccc", json!({}))).send().await.unwrap();
    assert_eq!(response.status(), 429);
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["error"]["code"], "queue_full");
    assert_eq!((first.await.unwrap().0, second.await.unwrap().0), (200, 200));
    assert_eq!(read(server.post(PATH, &body("dddd", json!({"max_tokens": 1})))).await.0, 200);
    let order: Vec<Vec<u32>> = server.fake.calls.lock().unwrap().iter().map(|(prompt, _)| prompt.clone()).collect();
    assert_eq!(order, [[1], [2], [4]]);
}

async fn eventually_queued(server: &Running, depth: usize) {
    let line = format!("edgelm_num_requests_waiting {depth}\n");
    for _ in 0..500 {
        if server.metrics().await.contains(&line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never {depth} requests in the queue");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_it() {
    let server = Running::start(slow()).await;
    let response = server.post(PATH, &body("a", json!({"stream": true}))).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    cancelled(&server, 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_plain_request_cancels_it() {
    let server = Running::start(slow()).await;
    let request = tokio::spawn(server.post(PATH, &body("a", json!({}))).send());
    eventually("generation runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    request.abort();
    cancelled(&server, 1).await;
}

#[tokio::test]
async fn an_answer_that_a_text_of_the_clients_ends_is_a_good_one() {
    let server = Running::start(slow()).await;
    let ask = json!({"model": "org/fake-1", "max_tokens": 50, "stop_sequences": ["w3"],
        "messages": [{"role": "user", "content": "a"}]});
    let (status, answer) = server.ask("/v1/messages", ask).await;
    assert_eq!((status, &answer["stop_reason"]), (200, &json!("stop_sequence")), "{answer}");
    eventually("generation returns", || server.fake.returned.load(Ordering::SeqCst) == 1).await;
    let metrics = server.metrics().await;
    for line in ["request_success_total{finished_reason=\"stop\"} 1\n", "cancelled_requests_total 0\n"] {
        assert!(metrics.contains(&format!("edgelm_{line}")), "{line}{metrics}");
    }
}

/// Generation ends soon after now, and far from its own end.
async fn cancelled(server: &Running, requests: usize) {
    let seen = server.fake.generated.load(Ordering::SeqCst);
    eventually("generation returns", || server.fake.returned.load(Ordering::SeqCst) == requests).await;
    let more = server.fake.generated.load(Ordering::SeqCst) - seen;
    // One token once the connection's end is noticed; the rest is room for a busy machine.
    assert!(more <= 10, "{more} tokens were generated for nobody");
    let line = format!("edgelm_cancelled_requests_total {requests}");
    for _ in 0..100 {
        if server.metrics().await.contains(&line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("cancelled requests are not counted");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let server = Running::start_with(slow(), ServerConfig { parallel: 1, queue: 1, ..ServerConfig::default() }).await;
    let running = tokio::spawn(read(server.post(PATH, &body("a", json!({})))));
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    for _ in 0..3 {
        let waiting = tokio::spawn(server.post(PATH, &body("left", json!({}))).send());
        eventually_queued(&server, 1).await;
        waiting.abort();
        // The place is free as soon as the server has seen the connection end.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = read(server.post(PATH, &body("dddd", json!({"max_tokens": 1})))).await;
    assert_eq!((last.0, running.await.unwrap().0), (200, 200));
    let prompts: Vec<Vec<u32>> = server.fake.calls.lock().unwrap().iter().map(|(prompt, _)| prompt.clone()).collect();
    assert_eq!(prompts, [[1], [4]], "what nobody waits for is not generated");
}

#[tokio::test]
async fn a_panic_fails_one_request() {
    let server = Running::start(Fake::default()).await;
    let (status, answer) = server.ask(PATH, body("panic", json!({}))).await;
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("internal_error")));
    let streamed = events(server.post(PATH, &body("panic", json!({"stream": true})))).await;
    assert_eq!(streamed.len(), 1, "an error and no [DONE]");
    assert_eq!(serde_json::from_str::<Value>(&streamed[0]).unwrap()["error"]["code"], "internal_error");
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200);
    assert!(server.metrics().await.contains("edgelm_engine_panics_total 2"));
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let mut server = Running::start(slow()).await;
    let request = tokio::spawn(read(server.post(PATH, &body("a", json!({"max_tokens": 10})))));
    eventually("generation runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    server.ask_to_stop();
    let (status, answer) = request.await.unwrap();
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(10)));
    let address = server.address;
    server.ended().await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let drain = Duration::from_millis(100);
    let mut server = Running::start_with(slow(), ServerConfig { parallel: 1, drain, ..ServerConfig::default() }).await;
    let request = |prompt| tokio::spawn(read(server.post(PATH, &body(prompt, json!({})))));
    let running = request("a");
    eventually("generation runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    let waiting = request("b");
    eventually_queued(&server, 1).await;
    let started = Instant::now();
    server.ask_to_stop();
    for request in [running, waiting] {
        let (status, answer) = request.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("shutting_down")));
    }
    server.ended().await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(1200));
}

#[tokio::test]
async fn a_loading_server_says_so() {
    // The port has to be known before the model is there, so one is picked here.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = ServerConfig { port, ..ServerConfig::default() };
    let (go, gone) = mpsc::channel();
    let (ready, is_ready) = oneshot::channel();
    let gone = Mutex::new(gone);
    let load = move || {
        gone.lock().unwrap().recv().unwrap();
        Ok(Arc::new(Fake::default()) as Arc<dyn Backend>)
    };
    let models = vec![Stock::new(1, load).spec("org/fake-1")];
    let server =
        tokio::spawn(serve_models(config, models, std::future::pending(), |address| ready.send(address).unwrap()));
    let client = client();
    let get = |path: &str| client.get(format!("http://127.0.0.1:{port}{path}"));
    while get("/health").send().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for path in ["/health", "/v1/models"] {
        let (status, answer) = read(get(path)).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("loading")));
    }
    go.send(()).unwrap();
    assert_eq!(is_ready.await.unwrap().port(), port);
    assert_eq!(read(get("/health")).await.0, 200);
    server.abort();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_loading() {
    let load = || {
        std::thread::sleep(Duration::from_secs(60));
        Err("too late".into())
    };
    let config = ServerConfig { port: 0, ..ServerConfig::default() };
    let shutdown = tokio::time::sleep(Duration::from_millis(50));
    let models = vec![Stock::new(1, load).spec("a")];
    let ended = tokio::time::timeout(Duration::from_secs(5), serve_models(config, models, shutdown, |_| ())).await;
    assert!(matches!(ended, Ok(Ok(()))));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let body_timeout = Duration::from_millis(100);
    let server = Running::start_with(Fake::default(), ServerConfig { body_timeout, ..ServerConfig::default() }).await;
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let request = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{";
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
}

#[tokio::test]
async fn what_keeps_a_server_from_starting_is_named() {
    let error = serve_models(
        ServerConfig { port: 0, ..ServerConfig::default() },
        vec![Stock::new(1, || Err("no such file".into())).spec("a")],
        std::future::pending(),
        |_| panic!("not ready"),
    )
    .await
    .unwrap_err();
    assert!(matches!(&error, ServeError::Load(source) if source.to_string() == "no such file"));

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = ServerConfig { port, ..ServerConfig::default() };
    let error = serve(config, Arc::new(Fake::default()), std::future::pending(), |_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on `127.0.0.1:{port}`"));
}
