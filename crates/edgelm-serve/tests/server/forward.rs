//! What reaches the collector, and when: at once, or after it was away.

use crate::{
    door::Authority,
    fake::{Fake, Running, eventually},
};
use axum::{Router, body::Body, http::Request};
use edgelm_serve::{ForwardConfig, OtlpConfig, ServerConfig};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value::Value,
    metrics::v1::metric::Data,
};
use serde_json::json;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tonic::{Response, Status};

/// What a collector has taken.
#[derive(Default)]
struct Taken {
    /// `edgelm.request.id` of root spans, in order.
    requests: Vec<String>,
    inputs: Vec<String>,
    metrics: Vec<(String, f64)>,
    authorization: Vec<String>,
}

#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Taken>>,
    /// Takes nothing for now.
    is_ill: Arc<AtomicBool>,
}

impl Collector {
    fn check<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.taken.lock().unwrap().authorization.extend(header);
        match self.is_ill.load(Ordering::SeqCst) {
            true => Err(Status::unavailable("ill")),
            false => Ok(()),
        }
    }

    fn requests(&self) -> Vec<String> {
        self.taken.lock().unwrap().requests.clone()
    }

    fn router(&self) -> Router {
        tonic::service::Routes::new(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .into_axum_router()
    }

    /// On this address, in the clear.
    async fn listen(&self, address: &str) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = self.router();
        (address, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.check(&request)?;
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|it| it.scope_spans);
        let attributes = spans.flat_map(|it| it.spans).flat_map(|span| span.attributes);
        for attribute in attributes.filter(|attribute| attribute.key == "edgelm.request.id") {
            let Some(Value::StringValue(id)) = attribute.value.unwrap().value else { panic!("a text") };
            self.taken.lock().unwrap().requests.push(id);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.check(&request)?;
        let records = request.into_inner().resource_logs.into_iter().flat_map(|it| it.scope_logs);
        for record in records.flat_map(|it| it.log_records) {
            let Some(Value::StringValue(body)) = record.body.unwrap().value else { panic!("a text") };
            self.taken.lock().unwrap().inputs.push(body);
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.check(&request)?;
        let all = request.into_inner().resource_metrics.into_iter().flat_map(|it| it.scope_metrics);
        for metric in all.flat_map(|it| it.metrics) {
            let value = match metric.data.unwrap() {
                Data::Histogram(histogram) => histogram.data_points.iter().map(|point| point.count as f64).sum(),
                Data::Sum(sum) => sum.data_points.iter().map(|point| format!("{:?}", point.value)).count() as f64,
                _ => 0.0,
            };
            self.taken.lock().unwrap().metrics.push((metric.name, value));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

async fn ask(server: &Running, id: &str) {
    let body = json!({"model": "org/fake-1", "prompt": "one two", "max_tokens": 3});
    let answer = server.post("/v1/completions", &body).header("x-request-id", id).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    // With its body, the journey ends.
    answer.bytes().await.unwrap();
}

fn with(otlp: OtlpConfig) -> ServerConfig {
    ServerConfig { otlp: Some(otlp), ..ServerConfig::default() }
}

fn kept(endpoint: SocketAddr, folder: &Path) -> OtlpConfig {
    let (limit_bytes, max_age) = (1 << 20, Duration::from_secs(3600));
    let forward = ForwardConfig { folder: folder.into(), limit_bytes, key: None, max_age };
    OtlpConfig { forward: Some(forward), ..OtlpConfig::new(&format!("http://{endpoint}")) }
}

fn batches(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".batch")).count()
}

async fn ended(mut server: Running) {
    server.ask_to_stop();
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_collector_arrives_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let collector = Collector::default();
    // A port that nobody listens at.
    let (address, listener) = collector.listen("127.0.0.1:0").await;
    listener.abort();
    let _ = listener.await;
    for id in ["first", "second"] {
        let server = Running::start_with(Fake::default(), with(kept(address, &spool))).await;
        ask(&server, id).await;
        ended(server).await;
    }
    assert_eq!(batches(&spool), 2);
    // Contents are for nobody else.
    for entry in fs::read_dir(&spool).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(9).any(|nine| nine == b"edgelm.re"));
    }
    // It is there, but ill: then it recovers.
    collector.is_ill.store(true, Ordering::SeqCst);
    let (_, listener) = collector.listen(&address.to_string()).await;
    let server = Running::start_with(Fake::default(), with(kept(address, &spool))).await;
    ask(&server, "third").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((batches(&spool), collector.requests().len()), (2, 0));
    collector.is_ill.store(false, Ordering::SeqCst);
    eventually("sent", || batches(&spool) == 0).await;
    assert_eq!(collector.requests(), ["first", "second"]);
    // Told after it is done.
    let lines = ["edgelm_forward_waiting_batches 0", "edgelm_forward_sent_batches_total{kind=\"traces\"} 2"];
    for attempt in 0.. {
        let metrics = server.metrics().await;
        if lines.iter().all(|line| metrics.lines().any(|other| other == *line)) {
            break;
        }
        assert!(attempt < 100, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ended(server).await;
    assert_eq!(collector.requests(), ["first", "second", "third"], "with the end of the server");
    // Nothing is left to be sent again.
    let server = Running::start_with(Fake::default(), with(kept(address, &spool))).await;
    ended(server).await;
    assert_eq!(collector.requests().len(), 3);
    listener.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_inputs_where_they_are_asked_for() {
    let collector = Collector::default();
    let (address, _) = collector.listen("127.0.0.1:0").await;
    let plain = OtlpConfig::new(&format!("http://{address}"));
    let server = Running::start_with(Fake::default(), with(plain.clone())).await;
    ask(&server, "a").await;
    ended(server).await;
    {
        let taken = collector.taken.lock().unwrap();
        assert_eq!(taken.requests, ["a"]);
        assert!(taken.inputs.is_empty() && taken.metrics.is_empty(), "nothing that nobody asked for");
    }
    let metrics_interval = Some(Duration::from_millis(50));
    let headers = vec![("authorization".to_owned(), "Bearer x".to_owned())];
    let otlp = OtlpConfig { metrics_interval, keep_inputs: true, headers, ..plain };
    let server = Running::start_with(Fake::default(), with(otlp)).await;
    ask(&server, "b").await;
    let has_seen = |taken: &Taken| {
        taken.metrics.iter().any(|(name, count)| name == "edgelm_e2e_request_latency_seconds" && *count == 1.0)
    };
    eventually("a snapshot", || has_seen(&collector.taken.lock().unwrap())).await;
    ended(server).await;
    let taken = collector.taken.lock().unwrap();
    assert_eq!((&taken.inputs[..], taken.requests.len()), (&["w3 w3 ".to_owned()][..], 2));
    assert!(taken.authorization.len() >= 3 && taken.authorization.iter().all(|value| value == "Bearer x"));
    assert!(taken.metrics.iter().all(|(name, _)| name.starts_with("edgelm_")));
}

/// One connection after the other, over TLS.
async fn serve_tls(router: Router, files: &edgelm_serve::TlsFiles) -> SocketAddr {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&files.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    tower_call(router.clone(), request.map(Body::new))
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let http = hyper_util::server::conn::auto::Builder::new(executor);
                let _ = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn tower_call(
    mut router: Router,
    request: Request<Body>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    tonic::codegen::Service::call(&mut router, request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_over_tls_has_to_be_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca = |name: &str, authority: &Authority| {
        let path = folder.path().join(name);
        fs::write(&path, authority.pem()).unwrap();
        Some(path)
    };
    let collector = Collector::default();
    let address = serve_tls(collector.router(), &ours.files(folder.path())).await;
    let endpoint = format!("https://localhost:{}", address.port());
    for (name, authority, count) in [("theirs", &theirs, 0), ("ours", &ours, 1)] {
        let otlp = OtlpConfig { ca: ca(name, authority), ..OtlpConfig::new(&endpoint) };
        let server = Running::start_with(Fake::default(), with(otlp)).await;
        ask(&server, name).await;
        ended(server).await;
        assert_eq!(collector.requests().len(), count, "{name}");
    }
    let refused = async |otlp: OtlpConfig| {
        let config = ServerConfig { port: 0, ..with(otlp) };
        let backend: Arc<dyn edgelm_serve::Backend> = Arc::new(Fake::default());
        edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await.unwrap_err().to_string()
    };
    let none = Some(folder.path().join("none"));
    assert!(refused(OtlpConfig { ca: none, ..OtlpConfig::new(&endpoint) }).await.contains("cannot be read"));
    let empty = Some(folder.path().join("key.pem"));
    assert!(refused(OtlpConfig { ca: empty, ..OtlpConfig::new(&endpoint) }).await.contains("holds no certificate"));
    let plain = OtlpConfig { ca: ca("x", &ours), ..OtlpConfig::new("http://localhost:1") };
    assert!(refused(plain).await.contains("no certificate to check"));
}
