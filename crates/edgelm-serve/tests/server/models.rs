//! Several models: loaded on demand, unloaded for memory, failing and stood in for.

use crate::fake::{Fake, Running, Stock, eventually, read};
use edgelm_serve::{Backend, BoxError, BreakerConfig, KeepAlive, ModelSpec, ServerConfig};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

const PATH: &str = "/v1/completions";

fn body(model: &str, extra: Value) -> Value {
    let mut body = json!({"model": model, "prompt": "a", "max_tokens": 3});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A model that counts its loads.
fn counted(id: &str, bytes: u64, loads: &Arc<AtomicUsize>, load_time: Duration) -> ModelSpec {
    let (name, loads) = (id.to_owned(), Arc::clone(loads));
    let load = move || {
        thread::sleep(load_time);
        loads.fetch_add(1, Ordering::SeqCst);
        let name = name.clone();
        Ok(Arc::new(Fake { name, ..Fake::default() }) as Arc<dyn Backend>)
    };
    Stock::new(bytes, load).spec(id)
}

fn failing(why: &'static str) -> Stock<impl Fn() -> Result<Arc<dyn Backend>, BoxError> + Send + Sync + 'static> {
    Stock::new(10, move || Err(why.into()))
}

async fn start(models: Vec<ModelSpec>, config: ServerConfig) -> Running {
    Running::start_models(Arc::default(), models, config).await
}

async fn states(server: &Running) -> Vec<String> {
    let (_, list) = server.get("/v1/models").await;
    list["data"].as_array().unwrap().iter().map(|model| model["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn models_are_loaded_when_asked_for_and_unloaded_for_others() {
    let loads: [Arc<AtomicUsize>; 3] = Default::default();
    let models = ["a", "b", "c"].iter().zip(&loads).map(|(id, loads)| counted(id, 40, loads, Duration::ZERO)).collect();
    let server = start(models, ServerConfig { memory_bytes: Some(100), ..ServerConfig::default() }).await;
    assert_eq!(states(&server).await, ["loaded", "unloaded", "unloaded"]);
    for id in ["b", "a"] {
        let (status, answer) = server.ask(PATH, body(id, json!({}))).await;
        assert_eq!((status, &answer["model"]), (200, &json!(id)));
    }
    assert_eq!(states(&server).await, ["loaded", "loaded", "unloaded"]);
    // `b` was not used for longest.
    assert_eq!(server.ask(PATH, body("c", json!({}))).await.0, 200);
    assert_eq!(states(&server).await, ["loaded", "unloaded", "loaded"]);
    let (_, ps) = server.get("/api/ps").await;
    let ids: Vec<_> = ps["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    assert_eq!(ids, ["a", "c"]);
    assert_eq!((&ps["models"][0]["size"], &ps["models"][0]["digest"]), (&json!(40), &json!("5".repeat(64))));
    assert_eq!(server.get("/api/tags").await.1["models"].as_array().unwrap().len(), 3);
    let (status, answer) = server.ask(PATH, body("d", json!({}))).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(loads.each_ref().map(|loads| loads.load(Ordering::SeqCst)), [1, 1, 1]);
    let metrics = server.metrics().await;
    assert!(metrics.contains("edgelm_model_loaded{model_name=\"b\"} 0"), "{metrics}");
    assert!(metrics.contains("edgelm_model_loads_total{model_name=\"c\"} 1"));
}

#[tokio::test]
async fn a_model_is_not_unloaded_while_it_answers() {
    let busy = Arc::new(Fake { name: "a".to_owned(), ..Fake::default() });
    let first: Arc<dyn Backend> = busy.clone();
    let loads = Arc::default();
    let models =
        vec![Stock::new(60, move || Ok(Arc::clone(&first))).spec("a"), counted("b", 60, &loads, Duration::ZERO)];
    let config = ServerConfig { memory_bytes: Some(100), queue: 1, parallel: 1, ..ServerConfig::default() };
    let server = start(models, config).await;
    let hanging = tokio::spawn(read(server.post(PATH, &body("a", json!({"prompt": "hang"})))));
    eventually("it runs", || busy.calls.lock().unwrap().len() == 1).await;
    // One that has no time left, and one that waits.
    let (status, answer) = server.ask(PATH, body("b", json!({"timeout": 0.1}))).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("deadline_exceeded")));
    let waiting = tokio::spawn(read(server.post(PATH, &body("b", json!({})))));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The model that leaves has a queue too: its new requests come after.
    let after = tokio::spawn(read(server.post(PATH, &body("a", json!({})))));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((loads.load(Ordering::SeqCst), states(&server).await[0].as_str()), (0, "unloading"));
    let (status, answer) = server.ask(PATH, body("a", json!({}))).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_full")));
    busy.release.store(true, Ordering::SeqCst);
    assert_eq!(hanging.await.unwrap().0, 200);
    assert_eq!(waiting.await.unwrap().0, 200);
    assert_eq!(after.await.unwrap().0, 200);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_for_a_model_that_loads_wait_in_its_queue() {
    let loads = Arc::default();
    let models =
        vec![counted("a", 1, &Arc::default(), Duration::ZERO), counted("b", 1, &loads, Duration::from_millis(300))];
    let server = start(models, ServerConfig { queue: 1, parallel: 1, ..ServerConfig::default() }).await;
    let request = || tokio::spawn(read(server.post(PATH, &body("b", json!({})))));
    let waiting = [request(), request()];
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 429);
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200, "others are not held up");
    for request in waiting {
        assert_eq!(request.await.unwrap().0, 200);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1, "one load for all");
}

#[tokio::test]
async fn keep_alive_unloads_and_the_next_request_loads() {
    let loads = Arc::default();
    let config = ServerConfig { keep_alive: KeepAlive::For(Duration::from_secs(60)), ..ServerConfig::default() };
    let server = start(vec![counted("a", 1, &loads, Duration::ZERO)], config).await;
    let chat = |keep_alive: Value| {
        json!({"model": "a:latest", "stream": false, "keep_alive": keep_alive,
        "messages": [{"role": "user", "content": "a"}]})
    };
    assert_eq!(server.ask("/api/chat", chat(json!("5m"))).await.0, 200);
    assert_eq!(states(&server).await, ["loaded"]);
    let (status, answer) = server.ask("/api/generate", json!({"model": "a", "keep_alive": 0})).await;
    assert_eq!((status, &answer["done_reason"]), (200, &json!("unload")));
    for _ in 0..200 {
        if states(&server).await == ["unloaded"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(states(&server).await, ["unloaded"]);
    assert_eq!(server.get("/api/ps").await.1, json!({"models": []}));
    assert_eq!(server.get("/health").await.0, 200);
    let (_, answer) = server.ask("/api/generate", json!({"model": "a", "keep_alive": -1})).await;
    assert_eq!(answer["done_reason"], "load");
    assert_eq!((states(&server).await, loads.load(Ordering::SeqCst)), (vec!["loaded".to_owned()], 2));
    for wrong in [json!("soon"), json!({})] {
        let (status, _) = server.ask("/api/chat", chat(wrong)).await;
        assert_eq!(status, 400);
    }
}

#[tokio::test]
async fn a_model_comes_from_the_first_artifact_that_works() {
    let mut model = counted("a", 1, &Arc::default(), Duration::ZERO);
    model.artifacts.insert(0, Arc::new(failing("bad checksum")));
    model.artifacts.insert(1, Arc::new(Stock::new(500, || panic!("never loaded: too large"))));
    let server = start(vec![model], ServerConfig { memory_bytes: Some(100), ..ServerConfig::default() }).await;
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200);
    let (status, health) = server.get("/health").await;
    assert_eq!((status, &health["status"], &health["models"][0]["fallback"]), (200, &json!("degraded"), &json!(true)));
    let metrics = server.metrics().await;
    assert!(metrics.contains("edgelm_model_load_failures_total{model_name=\"a\"} 2"), "{metrics}");
    assert!(metrics.contains("edgelm_model_fallbacks_total{model_name=\"a\",by=\"stock\"} 1"));
}

#[tokio::test]
async fn another_model_answers_for_one_that_cannot_be_loaded() {
    let broken = || {
        let mut model = failing("no such file").spec("b");
        model.artifacts.push(Arc::new(Stock::new(1, || panic!("corrupt"))));
        model
    };
    let models = || vec![counted("a", 1, &Arc::default(), Duration::ZERO), broken()];
    let server = start(models(), ServerConfig { fallback: Some("a".to_owned()), ..ServerConfig::default() }).await;
    let response = server.post(PATH, &body("b", json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-edgelm-fallback"]), (200, &"a".parse().unwrap()));
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["model"], "a");
    assert!(server.metrics().await.contains("edgelm_model_fallbacks_total{model_name=\"b\",by=\"a\"} 1"));
    let health = server.get("/health").await.1;
    assert_eq!((&health["status"], &health["models"][1]["state"]), (&json!("degraded"), &json!("unloaded")));

    let server = start(models(), ServerConfig::default()).await;
    let response = server.post(PATH, &body("b", json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"5".parse().unwrap()));
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200);
}

/// A model whose requests fail when told to.
fn breaking(latency: Option<Duration>) -> ServerConfig {
    let breaker = BreakerConfig { least: 4, open_for: Duration::from_millis(300), latency, ..BreakerConfig::default() };
    ServerConfig { breaker: Some(breaker), ..ServerConfig::default() }
}

#[tokio::test]
async fn a_model_that_fails_takes_no_requests_for_a_while() {
    let models = vec![counted("a", 1, &Arc::default(), Duration::ZERO)];
    let server = start(models, breaking(None)).await;
    for _ in 0..4 {
        assert_eq!(server.ask(PATH, body("a", json!({"prompt": "panic"}))).await.0, 500);
    }
    let response = server.post(PATH, &body("a", json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let health = server.get("/health").await.1;
    assert_eq!((&health["status"], &health["models"][0]["circuit"]), (&json!("degraded"), &json!("open")));
    assert!(server.metrics().await.contains("edgelm_circuit_breaker{model_name=\"a\"} 2"));
    tokio::time::sleep(Duration::from_millis(320)).await;
    // A probe that fails, and, later, three that do well.
    assert_eq!(server.ask(PATH, body("a", json!({"prompt": "panic"}))).await.0, 500);
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 503);
    tokio::time::sleep(Duration::from_millis(320)).await;
    for _ in 0..3 {
        assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200);
    }
    assert_eq!(server.get("/health").await.1["models"][0]["circuit"], "closed");
}

#[tokio::test]
async fn slow_requests_open_the_circuit_and_a_text_or_a_model_answers() {
    let slow = || {
        let load = || {
            let fake = Fake { name: "b".to_owned(), token_time: Duration::from_millis(30), ..Fake::default() };
            Ok(Arc::new(fake) as Arc<dyn Backend>)
        };
        vec![counted("a", 1, &Arc::default(), Duration::ZERO), Stock::new(1, load).spec("b")]
    };
    let config = breaking(Some(Duration::from_millis(10)));
    for fallback in [Some("a".to_owned()), None] {
        let text = Some("Please come again.".to_owned());
        let server =
            start(slow(), ServerConfig { fallback: fallback.clone(), fallback_text: text, ..config.clone() }).await;
        for _ in 0..4 {
            assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 200);
        }
        let response = server.post(PATH, &body("b", json!({}))).send().await.unwrap();
        let named = response.headers()["x-edgelm-fallback"].to_str().unwrap().to_owned();
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        match fallback {
            Some(_) => assert_eq!((named.as_str(), &answer["model"]), ("a", &json!("a"))),
            None => {
                assert_eq!((named.as_str(), &answer["choices"][0]["text"]), ("text", &json!("Please come again.")));
                assert_eq!(answer["usage"]["completion_tokens"], 0);
            }
        }
    }
}

#[tokio::test]
async fn an_engine_that_hangs_is_started_again_and_others_go_on() {
    let fake = Arc::new(Fake { name: "a".to_owned(), ..Fake::default() });
    let first: Arc<dyn Backend> = fake.clone();
    let models =
        vec![Stock::new(0, move || Ok(Arc::clone(&first))).spec("a"), counted("b", 0, &Arc::default(), Duration::ZERO)];
    let pass_limit = Duration::from_millis(200);
    let config = ServerConfig { pass_limit, restarts: 2, parallel: 1, breaker: None, ..ServerConfig::default() };
    let server = start(models, config).await;
    assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 200);
    for round in 1..=2 {
        let hanging = tokio::spawn(read(server.post(PATH, &body("a", json!({"prompt": "hang"})))));
        eventually("it runs", || fake.calls.lock().unwrap().len() == 2 * round - 1).await;
        let waiting = tokio::spawn(read(server.post(PATH, &body("a", json!({})))));
        let other = server.ask(PATH, body("b", json!({}))).await;
        assert_eq!(other.0, 200, "another model does not wait for ever");
        let (status, answer) = hanging.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("stalled")));
        assert_eq!(waiting.await.unwrap().0, 200, "who waits is answered by the new thread");
        assert_eq!(server.get("/health").await.0, 200);
        assert!(server.metrics().await.contains(&format!("edgelm_engine_restarts_total {round}\n")));
    }
    // Too often.
    let (status, _) = server.ask(PATH, body("a", json!({"prompt": "hang"}))).await;
    assert_eq!((status, server.get("/health").await.0), (503, 503));
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.1["error"]["code"], "stalled");
    assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 200);
    // Those that come back late end without a word, but for the last, which was not replaced.
    fake.release.store(true, Ordering::SeqCst);
    for _ in 0..200 {
        if server.get("/health").await.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.ask(PATH, body("a", json!({}))).await.0, 200);
}

#[tokio::test]
async fn a_model_that_was_repaired_is_loaded_by_the_next_request() {
    let is_there = Arc::new(Mutex::new(false));
    let theirs = Arc::clone(&is_there);
    let load = move || match *theirs.lock().unwrap() {
        true => Ok(Arc::new(Fake::default()) as Arc<dyn Backend>),
        false => Err("no such file".into()),
    };
    let models = vec![counted("a", 1, &Arc::default(), Duration::ZERO), Stock::new(1, load).spec("b")];
    let server = start(models, ServerConfig::default()).await;
    assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 503);
    *is_there.lock().unwrap() = true;
    assert_eq!(server.ask(PATH, body("b", json!({}))).await.0, 200);
    assert_eq!(server.get("/health").await.1["status"], "ok");
}
