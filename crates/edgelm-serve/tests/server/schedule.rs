//! Several requests at once: who runs, who waits, who pays for whom.

use crate::fake::{Fake, Running, events, eventually, read};
use edgelm_serve::{ApiKeys, ServerConfig};
use serde_json::{Value, json};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

const PATH: &str = "/v1/completions";

fn body(prompt: &str, extra: Value) -> Value {
    let mut body = json!({"model": "org/fake-1", "prompt": prompt, "max_tokens": 20});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn fake(token_ms: u64) -> Fake {
    Fake { token_time: Duration::from_millis(token_ms), eos_after: 50, ..Fake::default() }
}

fn ask(server: &Running, prompt: &str, extra: Value) -> JoinHandle<(u16, Value)> {
    tokio::spawn(read(server.post(PATH, &body(prompt, extra))))
}

async fn until_metric(server: &Running, line: &str) {
    for _ in 0..500 {
        if server.metrics().await.lines().any(|other| other == line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never `{line}`:\n{}", server.metrics().await);
}

/// First tokens of the prompts of each generation, in the order they began.
fn order(server: &Running) -> Vec<u32> {
    server.fake.calls.lock().unwrap().iter().map(|(prompt, _)| prompt[0]).collect()
}

#[tokio::test]
async fn requests_share_passes_and_join_at_any_time() {
    let server = Running::start(fake(10)).await;
    let first = ask(&server, "a", json!({}));
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 3).await;
    let others: Vec<_> = ["bb", "ccc", "dddd"].map(|prompt| ask(&server, prompt, json!({"max_tokens": 5}))).into();
    for other in others {
        let (status, answer) = other.await.unwrap();
        assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!("w0 w1 w2 w3 w4 ")));
    }
    let (status, answer) = first.await.unwrap();
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(20)));
    let passes = server.fake.passes.lock().unwrap().clone();
    assert!(passes.iter().any(|pass| pass.len() == 4), "{passes:?}");
    // The first had a token in every pass: nobody stopped it.
    assert_eq!(passes.iter().filter(|pass| pass.iter().any(|(prompt, _)| prompt == &[1])).count(), 20);
}

#[tokio::test]
async fn no_more_run_at_once_than_allowed() {
    let server = Running::start_with(fake(3), ServerConfig { parallel: 3, ..ServerConfig::default() }).await;
    let all: Vec<_> = (0..10).map(|_| ask(&server, "a", json!({}))).collect();
    for request in all {
        assert_eq!(request.await.unwrap().0, 200);
    }
    let passes = server.fake.passes.lock().unwrap().clone();
    assert_eq!(passes.iter().map(Vec::len).max(), Some(3));
}

#[tokio::test]
async fn a_long_prompt_is_spread_over_passes() {
    let fake = Fake { context: 10_000, ..fake(5) };
    let server = Running::start(fake).await;
    let first = ask(&server, "a", json!({"max_tokens": 40}));
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 3).await;
    let long = ask(&server, &"bb ".repeat(3000), json!({"max_tokens": 2}));
    assert_eq!((first.await.unwrap().0, long.await.unwrap().0), (200, 200));
    let passes = server.fake.passes.lock().unwrap().clone();
    let rows: Vec<usize> =
        passes.iter().flatten().filter(|(prompt, rows)| prompt.len() > 1 && *rows > 1).map(|(_, rows)| *rows).collect();
    assert_eq!(rows.iter().sum::<usize>(), 3000);
    assert!(rows.iter().all(|rows| *rows <= 512) && rows.len() >= 6, "{rows:?}");
    let beside = passes.iter().filter(|pass| pass.len() == 2).count();
    assert!(beside >= 6, "the other request goes on meanwhile: {beside} passes together");
}

#[tokio::test]
async fn choices_run_together_and_are_reported_in_order() {
    let server = Running::start(fake(5)).await;
    let streamed = events(
        server.post(PATH, &body("a b c", json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}))),
    )
    .await;
    assert_eq!(streamed.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = streamed.iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let indexes: Vec<u64> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["index"].as_u64()).collect();
    assert!(indexes.is_sorted(), "{indexes:?}");
    for index in 0..3 {
        let text: String = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == index)
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(text.split_whitespace().count(), 20, "{text}");
    }
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(
        (&usage["completion_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]),
        (&json!(60), &json!(2))
    );
    assert!(server.fake.passes.lock().unwrap().iter().any(|pass| pass.len() == 3));
    let seeds: Vec<u64> = server.fake.calls.lock().unwrap().iter().map(|(_, options)| options.sampling.seed).collect();
    assert_eq!((seeds[1].wrapping_sub(seeds[0]), seeds[2].wrapping_sub(seeds[0])), (1, 2));
}

#[tokio::test]
async fn clients_take_turns() {
    let api_keys: ApiKeys = ["k1", "k2"].into_iter().collect();
    let config = ServerConfig { parallel: 1, api_keys, ..ServerConfig::default() };
    let server = Running::start_with(fake(5), config).await;
    let ask = |prompt: &str, key: &str| {
        tokio::spawn(read(server.post(PATH, &body(prompt, json!({"max_tokens": 5}))).bearer_auth(key)))
    };
    let mut all = vec![ask("a", "k1")];
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    // One after the other, so that they wait in this order.
    for (at, (prompt, key)) in
        [("bb", "k1"), ("ccc", "k1"), ("dddd", "k1"), ("eeeee", "k2"), ("ffffff", "k2")].into_iter().enumerate()
    {
        all.push(ask(prompt, key));
        let line = format!("edgelm_num_requests_waiting {}\n", at + 1);
        let client = &server.client;
        for _ in 0..500 {
            let metrics = client.get(server.url("/metrics")).bearer_auth("k1").send().await.unwrap();
            if metrics.text().await.unwrap().contains(&line) || order(&server).len() > 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for request in all {
        assert_eq!(request.await.unwrap().0, 200);
    }
    let order = order(&server);
    // The second client's first request is before the first client's third, whenever the first pass ended.
    let place = |name: u32| order.iter().position(|other| *other == name).unwrap();
    assert!(place(5) < place(4), "{order:?}");
    assert!(place(2) < place(3) && place(3) < place(4) && place(5) < place(6), "{order:?}");
}

#[tokio::test]
async fn smaller_priorities_go_first() {
    let server = Running::start_with(fake(10), ServerConfig { parallel: 1, ..ServerConfig::default() }).await;
    let mut all = vec![ask(&server, "a", json!({}))];
    eventually("the first runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    for (at, (prompt, priority)) in [("bb", 5), ("ccc", 0), ("dddd", -3)].into_iter().enumerate() {
        all.push(ask(&server, prompt, json!({"priority": priority, "max_tokens": 2})));
        until_metric(&server, &format!("edgelm_num_requests_waiting {}", at + 1)).await;
    }
    for request in all {
        assert_eq!(request.await.unwrap().0, 200);
    }
    assert_eq!(order(&server), [1, 4, 3, 2]);
}

#[tokio::test]
async fn a_request_out_of_time_fails_wherever_it_is() {
    let server = Running::start_with(fake(10), ServerConfig { parallel: 1, ..ServerConfig::default() }).await;
    let running = ask(&server, "a", json!({"timeout": 0.1, "max_tokens": 50}));
    eventually("it runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    let waiting = ask(&server, "bb", json!({"timeout": 0.01}));
    for late in [running, waiting] {
        let (status, answer) = late.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (504, &json!("deadline_exceeded")));
    }
    assert!(server.fake.generated.load(Ordering::SeqCst) < 20);
    until_metric(&server, "edgelm_late_requests_total 2").await;
    let request_time = Some(Duration::from_millis(50));
    let server = Running::start_with(fake(10), ServerConfig { request_time, ..ServerConfig::default() }).await;
    assert_eq!(ask(&server, "a", json!({"timeout": 60, "max_tokens": 50})).await.unwrap().0, 504);
    assert_eq!(ask(&server, "a", json!({"max_tokens": 1})).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_limit_on_tokens_bounds_what_was_not_asked_for_and_refuses_more() {
    let config = ServerConfig { request_tokens: Some(7), ..ServerConfig::default() };
    let server = Running::start_with(fake(0), config).await;
    let (status, answer) = server.ask(PATH, body("a", json!({"max_tokens": 8}))).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("max_tokens")));
    let chat = json!({"model": "org/fake-1", "messages": [{"role": "user", "content": "a"}]});
    let (_, answer) = server.ask("/v1/chat/completions", chat).await;
    assert_eq!(answer["usage"]["completion_tokens"], 7);
}

#[tokio::test]
async fn a_panic_fails_the_guilty_one_alone() {
    let server = Running::start(fake(10)).await;
    let innocent: Vec<_> = ["a", "bb", "ccc"].map(|prompt| ask(&server, prompt, json!({}))).into();
    eventually("they run", || server.fake.generated.load(Ordering::SeqCst) > 6).await;
    let (status, answer) = ask(&server, "panic", json!({})).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("internal_error")));
    for request in innocent {
        let (status, answer) = request.await.unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(20)));
        let words: Vec<String> = (0..20).map(|word| format!("w{word} ")).collect();
        assert_eq!(answer["choices"][0]["text"], words.concat());
    }
    assert!(server.metrics().await.contains("edgelm_engine_panics_total 1"));
}

#[tokio::test]
async fn a_pass_that_hangs_is_noticed_and_survived() {
    let config =
        ServerConfig { parallel: 2, pass_limit: Duration::from_millis(100), restarts: 0, ..ServerConfig::default() };
    let server = Running::start_with(fake(1), config).await;
    let hanging = ask(&server, "hang", json!({}));
    eventually("it has begun", || !server.fake.calls.lock().unwrap().is_empty()).await;
    let waiting = ask(&server, "a", json!({}));
    let began = Instant::now();
    for request in [hanging, waiting] {
        let (status, answer) = request.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("stalled")));
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(server.get("/health").await.0, 503);
    assert_eq!(ask(&server, "a", json!({})).await.unwrap().0, 503);
    until_metric(&server, "edgelm_engine_ready 0").await;
    server.fake.release.store(true, Ordering::SeqCst);
    until_metric(&server, "edgelm_engine_ready 1").await;
    until_metric(&server, "edgelm_engine_stalls_total 1").await;
    assert_eq!(server.get("/health").await.0, 200);
    assert_eq!(ask(&server, "a", json!({})).await.unwrap().0, 200);
}

#[tokio::test]
async fn little_memory_makes_requests_wait_or_refuses_them() {
    let server = Running::start(Fake { room: 30, ..fake(2) }).await;
    let all: Vec<_> = ["a a a", "bb bb bb", "ccc ccc ccc", "dddd dddd dddd"]
        .map(|prompt| ask(&server, prompt, json!({"max_tokens": 20})))
        .into();
    for request in all {
        let (status, answer) = request.await.unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(20)));
        let words: Vec<String> = (0..20).map(|word| format!("w{word} ")).collect();
        assert_eq!(answer["choices"][0]["text"], words.concat(), "a pause changes nothing");
    }
    // What never fits is refused before it waits.
    let (status, answer) = ask(&server, "a a a", json!({"max_tokens": 28})).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("kv_budget_exceeded")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("300 bytes"), "{answer}");
    let prompt = "a ".repeat(30);
    let chat = json!({"model": "org/fake-1", "messages": [{"role": "user", "content": prompt}]});
    assert_eq!(server.ask("/v1/chat/completions", chat).await.1["error"]["code"], "kv_budget_exceeded");
    let chat = json!({"model": "org/fake-1", "messages": [{"role": "user", "content": "a"}]});
    let (status, answer) = server.ask("/v1/chat/completions", chat).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(29)));
}

#[tokio::test]
async fn adapters_are_models() {
    let adapter = Arc::default();
    let adapters = vec![("org/tuned".to_owned(), Arc::clone(&adapter))];
    let server = Running::start(Fake { adapters, ..fake(1) }).await;
    let (_, models) = server.get("/v1/models").await;
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|it| (&it["id"], &it["parent"])).collect();
    assert_eq!(ids, [(&json!("org/fake-1"), &Value::Null), (&json!("org/tuned"), &json!("org/fake-1"))]);
    assert_eq!(server.get("/v1/models/org/tuned").await.1["parent"], "org/fake-1");
    let (status, answer) = server.ask(PATH, body("a", json!({"model": "org/tuned"}))).await;
    assert_eq!((status, &answer["model"]), (200, &json!("org/tuned")));
    assert_eq!(server.ask(PATH, body("bb", json!({}))).await.0, 200);
    {
        let calls = server.fake.calls.lock().unwrap();
        assert!(calls[0].1.adapter.as_ref().is_some_and(|it| Arc::ptr_eq(it, &adapter)));
        assert!(calls[1].1.adapter.is_none());
    }
    let (status, answer) = server.ask(PATH, body("a", json!({"model": "other"}))).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("org/tuned"));
}
