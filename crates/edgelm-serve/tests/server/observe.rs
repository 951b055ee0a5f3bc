//! What a server says about itself: probes of health, traces, and the metrics that dashboards and alerts name.

use crate::fake::{Fake, Running, Stock, eventually};
use edgelm_serve::{ApiKeys, Backend, HealthBaseline, NewKey, OtlpConfig, Scope, ServerConfig};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

async fn ask(server: &Running) -> u16 {
    server.ask("/v1/completions", json!({"model": "org/fake-1", "prompt": "one two", "max_tokens": 3})).await.0
}

#[tokio::test]
async fn a_model_that_says_something_else_gets_no_requests_until_it_is_mended() {
    let config = ServerConfig { health_interval: Some(Duration::from_millis(30)), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let health = server.get("/health").await;
    assert_eq!((health.0, &health.1["models"][0]["health"]["ok"]), (200, &json!(true)));
    assert_eq!(health.1["models"][0]["health"]["logits_sha256"], "good");
    server.fake.is_corrupt.store(true, Ordering::SeqCst);
    let mut health = (200, json!(null));
    for _ in 0..300 {
        health = server.get("/health").await;
        if health.0 == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((health.0, &health.1["error"]["code"]), (503, &json!("unhealthy")), "{}", health.1);
    assert_eq!(ask(&server).await, 503);
    let metrics = server.metrics().await;
    assert!(metrics.contains("edgelm_health_mismatches_total 1"), "{metrics}");
    // Mended before the reloads are used up: memory was bad, and what is loaded anew is good.
    server.fake.is_corrupt.store(false, Ordering::SeqCst);
    for _ in 0..300 {
        health = server.get("/health").await;
        if health.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(health.0, 200, "{}", health.1);
    assert_eq!(ask(&server).await, 200);
}

/// A baseline of what fakes say, and of the digest that tests give all models.
fn baseline(folder: &Path, bits: &str) -> Arc<HealthBaseline> {
    let path = folder.join("baseline.json");
    let run = json!({"numerics": "fake", "tokens": [1, 2, 3], "logits_sha256": bits, "perplexity": 3.0});
    let digest = format!("sha256:{}", "5".repeat(64));
    let model = json!({"model": "org/fake-1", "digest": digest, "prompt": "a b", "prompt_tokens": 2, "runs": [run]});
    fs::write(&path, json!({"version": 1, "models": [model]}).to_string()).unwrap();
    Arc::new(HealthBaseline::read(&path).unwrap())
}

#[tokio::test]
async fn a_first_probe_is_compared_with_the_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let good = Some(baseline(folder.path(), "good"));
    let config = ServerConfig { health_baseline: good.clone(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let health = server.get("/health").await.1;
    assert_eq!(health["models"][0]["health"]["baseline"], "the same bits", "{health}");

    // Loaded wrongly once: the second time is good.
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let stock = Stock::new(0, move || {
        let fake = Fake::default();
        fake.is_corrupt.store(counted.fetch_add(1, Ordering::SeqCst) == 0, Ordering::SeqCst);
        Ok(Arc::new(fake) as Arc<dyn Backend>)
    });
    let config = ServerConfig { health_baseline: good, ..ServerConfig::default() };
    let fake = Arc::new(Fake::default());
    let server = Running::start_models(fake, vec![stock.spec("org/fake-1")], config).await;
    assert_eq!(ask(&server).await, 200);
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    assert!(server.metrics().await.contains("edgelm_health_mismatches_total 1"));

    // And never: there is no server.
    let bad = baseline(folder.path(), "bad");
    let config = ServerConfig { health_baseline: Some(bad), port: 0, ..ServerConfig::default() };
    let stock = Stock::new(0, || Ok(Arc::new(Fake::default()) as Arc<dyn Backend>));
    let models = vec![stock.spec("org/fake-1")];
    let ended = edgelm_serve::serve_models(config, models, std::future::pending(), |_| {}).await;
    assert!(matches!(ended, Err(edgelm_serve::ServeError::Load(_))), "{ended:?}");
}

#[tokio::test]
async fn no_probe_while_somebody_waits() {
    let config = ServerConfig { health_interval: Some(Duration::from_millis(10)), ..ServerConfig::default() };
    let fake = Fake { eos_after: 60, token_time: Duration::from_millis(20), ..Fake::default() };
    let server = Running::start_with(fake, config).await;
    let probes = async || server.get("/health").await.1["models"][0]["health"]["probes"].as_u64().unwrap();
    let body = json!({"model": "org/fake-1", "prompt": "x", "max_tokens": 20, "stream": true});
    let mut response = server.post("/v1/completions", &body).send().await.unwrap();
    response.chunk().await.unwrap();
    let before = probes().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(probes().await, before);
    while response.chunk().await.unwrap().is_some() {}
    // A probe takes the fake's time for each of its tokens, and more of it on a busy machine.
    for _ in 0..300 {
        if probes().await > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no probe although nobody waits");
}

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_continue_the_clients() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(collector.clone());
    let router = tonic::service::Routes::new(service).into_axum_router();
    tokio::spawn(async move { axum::serve(listener, router).await });

    let config = ServerConfig { otlp: Some(OtlpConfig::new(&endpoint)), ..ServerConfig::default() };
    let mut server = Running::start_with(Fake::default(), config).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = json!({"model": "org/fake-1", "prompt": "one two", "max_tokens": 3});
    let request =
        server.post("/v1/completions", &body).header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(ask(&server).await, 200);
    server.get("/health").await;
    server.ask_to_stop();
    server.ended().await.unwrap();

    let spans = collector.0.lock().unwrap().clone();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let requests = named("POST /v1/completions");
    assert_eq!((requests.len(), spans.len()), (2, 8), "a request and three phases, twice; none of /health");
    let root = requests.iter().find(|span| hex(&span.trace_id) == trace).expect("the client's trace goes on");
    assert_eq!(hex(&root.parent_span_id), "00f067aa0ba902b7");
    assert!(requests.iter().any(|span| span.parent_span_id.is_empty()), "without a parent it begins a trace");
    let mut end = root.start_time_unix_nano;
    for name in ["queue", "prefill", "decode"] {
        let span = *named(name).iter().find(|span| span.trace_id == root.trace_id).unwrap();
        assert_eq!(span.parent_span_id, root.span_id);
        assert_eq!(span.start_time_unix_nano, end, "{name} begins where the one before ends");
        end = span.end_time_unix_nano;
    }
    assert!(end <= root.end_time_unix_nano);
    let tokens = root.attributes.iter().find(|it| it.key == "gen_ai.usage.output_tokens").unwrap();
    assert!(format!("{tokens:?}").contains("IntValue(3)"));
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nothing_up() {
    let config = ServerConfig { otlp: Some(OtlpConfig::new("http://127.0.0.1:9")), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    assert_eq!(ask(&server).await, 200);
    let config = ServerConfig { otlp: Some(OtlpConfig::new("ftp://x")), port: 0, ..ServerConfig::default() };
    let backend: Arc<dyn edgelm_serve::Backend> = Arc::new(Fake::default());
    let error = edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await.unwrap_err();
    assert!(matches!(error, edgelm_serve::ServeError::Traces { .. }));
}

/// Names of metrics in a text: `edgelm_` and what follows.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.match_indices("edgelm_").map(|(at, _)| at);
    starts.map(|at| text[at..].chars().take_while(|&c| is_part(c)).collect()).collect()
}

#[tokio::test]
async fn what_dashboards_and_alerts_name_is_exported() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let server = Running::start(Fake::default()).await;
    assert_eq!(ask(&server).await, 200);
    let metrics = server.metrics().await;
    // Families by their TYPE lines: sensors that this machine lacks have no samples.
    let mut exported = BTreeSet::new();
    for line in metrics.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else { continue };
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        exported.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    let mut files = 0;
    for folder in ["grafana", "prometheus"] {
        for entry in fs::read_dir(deploy.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            if path.extension().is_some_and(|it| it == "json") {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
            let named = names(&text);
            assert!(named.len() > 5, "{}", path.display());
            let unknown: Vec<_> = named.difference(&exported).collect();
            assert!(unknown.is_empty(), "{} names {unknown:?}", path.display());
            files += 1;
        }
    }
    assert_eq!(files, 2);
}

#[tokio::test]
async fn the_dashboards_data() {
    let server = Running::start(Fake { token_time: Duration::from_millis(20), eos_after: 60, ..Fake::default() }).await;
    assert_eq!(ask(&server).await, 200);
    let body = json!({"model": "org/fake-1", "prompt": "x", "max_tokens": 50, "stream": true});
    let mut response = server.post("/v1/completions", &body).send().await.unwrap();
    response.chunk().await.unwrap();
    let (status, state) = server.get("/dashboard/state").await;
    assert_eq!(status, 200);
    assert_eq!(state["models"][0]["id"], "org/fake-1");
    assert_eq!((&state["running"][0]["state"], &state["running"][0]["prompt_tokens"]), (&json!("decode"), &json!(1)));
    assert_eq!((&state["recent"][0]["state"], &state["recent"][0]["generated_tokens"]), (&json!("length"), &json!(3)));
    drop(response);
    let fake = Arc::clone(&server.fake);
    eventually("the generation ends", || fake.returned.load(Ordering::SeqCst) == 2).await;
    for (path, kind) in
        [("/dashboard", "text/html"), ("/dashboard/style.css", "text/css"), ("/dashboard/script.js", "text/javascript")]
    {
        let response = server.client.get(server.url(path)).send().await.unwrap();
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with(kind));
        assert!(response.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        let text = response.text().await.unwrap();
        assert!(!text.contains("https://"), "{path} names another server");
        assert!(!text.replace("http://www.w3.org/2000/svg", "").contains("http://"), "{path} names another server");
        assert!(!text.contains("innerHTML"), "{path} makes elements of texts");
    }
}

#[tokio::test]
async fn the_dashboards_data_wants_a_key_where_metrics_do() {
    let config = ServerConfig { api_keys: ["k1"].into_iter().collect(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    assert_eq!(server.get("/dashboard/state").await.0, 401);
    assert_eq!(server.client.get(server.url("/dashboard")).send().await.unwrap().status(), 200);
    let answer = server.client.get(server.url("/dashboard/state")).header("authorization", "Bearer k1").send().await;
    assert_eq!(answer.unwrap().status(), 200);
}

/// Events of a row (1: phases, 2: passes, 3: picks) with this name.
fn events<'a>(trace: &'a Value, row: u64, name: &str) -> Vec<&'a Value> {
    let all = trace["traceEvents"].as_array().unwrap().iter();
    all.filter(|event| event["ph"] == "X" && event["tid"] == row && event["name"] == name).collect()
}

#[tokio::test]
async fn a_request_tells_what_it_spent_its_time_on() {
    let server = Running::start(Fake { token_time: Duration::from_millis(5), ..Fake::default() }).await;
    let body = json!({"model": "org/fake-1", "prompt": "one two three", "max_tokens": 4, "n": 2});
    let request =
        server.post("/v1/completions", &body).header("x-edgelm-trace", "1").header("x-request-id", "my/run 1");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    // That id is none that is taken over.
    let url = answer.headers()["x-edgelm-trace"].to_str().unwrap().to_owned();
    answer.bytes().await.unwrap();
    let list = server.get("/v1/traces").await.1;
    assert_eq!((&list["data"][0]["url"], list["data"].as_array().unwrap().len()), (&json!(url), 1));
    let (status, trace) = server.get(&url).await;
    assert_eq!(status, 200, "{trace}");
    let [whole] = events(&trace, 1, "request")[..] else { panic!("one request: {trace}") };
    assert_eq!((&whole["args"]["generated_tokens"], &whole["args"]["status"]), (&json!(8), &json!(200)));
    let (mut end, mut sum) = (0.0, 0.0);
    for name in ["prepare", "queue", "prefill", "decode", "send"] {
        let [phase] = events(&trace, 1, name)[..] else { panic!("one {name}: {trace}") };
        let (ts, dur) = (phase["ts"].as_f64().unwrap(), phase["dur"].as_f64().unwrap());
        assert!((ts - end).abs() < 1.0, "{name} begins where the one before ends: {trace}");
        (end, sum) = (ts + dur, sum + dur);
    }
    assert!((sum - whole["dur"].as_f64().unwrap()).abs() < 10.0, "{trace}");
    // The first choice computes the prompt; then both decode together.
    let prefill = events(&trace, 2, "prefill");
    assert_eq!(prefill[0]["args"]["rows"], 3);
    assert!(prefill[0]["dur"].as_f64().unwrap() >= 5000.0);
    let shared = |event: &&&Value| event["args"]["pass_sequences"] == 2;
    assert!(events(&trace, 2, "decode").iter().filter(shared).count() >= 2, "{trace}");
    let picked: u64 = events(&trace, 3, "pick").iter().map(|it| it["args"]["tokens"].as_u64().unwrap()).sum();
    assert_eq!(picked, 8);

    // Without being asked, nothing is recorded; asked for in another way, nothing is answered.
    assert_eq!(ask(&server).await, 200);
    assert_eq!(server.get("/v1/traces").await.1["data"].as_array().unwrap().len(), 1);
    let wrong = server.post("/v1/completions", &body).header("x-edgelm-trace", "yes").send().await.unwrap();
    assert_eq!(wrong.status(), 400);
    assert_eq!(server.get("/v1/traces/none").await.1["error"]["code"], "trace_not_found");
    for index in 0..20 {
        let request = server.post("/v1/completions", &body).header("x-edgelm-trace", "1");
        request.header("x-request-id", format!("a/{index}")).send().await.unwrap().bytes().await.unwrap();
    }
    let list = server.get("/v1/traces").await.1;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["data"][0]["url"]), (16, &json!("/v1/traces/a%2F19")));
    assert_eq!(server.get("/v1/traces/a%2F19").await.1["otherData"]["id"], "a/19");
    assert_eq!(server.get("/v1/traces/a%2F3").await.0, 404, "the oldest go");
}

#[tokio::test]
async fn traces_are_for_admins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let keys =
        [("user", Scope::Use), ("operator", Scope::Admin)].map(|(name, scope)| NewKey::random(name, scope).unwrap());
    fs::write(&path, keys.iter().map(|key| key.line.clone() + "\n").collect::<String>()).unwrap();
    let config = ServerConfig { api_keys: ApiKeys::from_file(&path).unwrap(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let body = json!({"model": "org/fake-1", "prompt": "one", "max_tokens": 4});
    for (key, status) in keys.iter().zip([403, 200]) {
        let request = server.post("/v1/completions", &body).bearer_auth(&key.key).header("x-edgelm-trace", "1");
        assert_eq!(request.send().await.unwrap().status(), status);
        let list = server.client.get(server.url("/v1/traces")).bearer_auth(&key.key).send().await.unwrap();
        assert_eq!(list.status(), status);
    }
}
