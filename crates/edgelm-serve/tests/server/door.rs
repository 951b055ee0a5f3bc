//! Who gets in, over which connections, and who is let go.

use crate::fake::{Fake, Running, client, eventually, read};
use edgelm_serve::{ApiKeys, DoorLimits, NewKey, RateLimits, Scope, ServeError, ServerConfig, TlsFiles};
use futures::StreamExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PATH: &str = "/v1/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({"model": "org/fake-1", "prompt": "a", "max_tokens": 5});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// An authority that makes certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Each has a name of its own: lists of revoked certificates are found by it.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("authority {} of the tests", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key.
    pub fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A list of revoked certificates.
    fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2024, 1, 2),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// For the server.
    pub fn files(&self, folder: &Path) -> TlsFiles {
        let (cert, key) = self.issue(|_| {});
        let (cert_path, key_path) = (folder.join("cert.pem"), folder.join("key.pem"));
        let files = TlsFiles { cert: cert_path, key: key_path, client_ca: None, client_crl: None };
        fs::write(&files.cert, cert).unwrap();
        fs::write(&files.key, key).unwrap();
        files
    }

    /// Who trusts this authority, with a certificate of its own or without.
    fn client(&self, identity: Option<(String, String)>) -> reqwest::Client {
        let _ = client();
        let root = reqwest::Certificate::from_pem(self.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        if let Some((cert, key)) = identity {
            builder = builder.identity(reqwest::Identity::from_pem(format!("{cert}{key}").as_bytes()).unwrap());
        }
        builder.resolve("localhost", (Ipv4Addr::LOCALHOST, 0).into()).build().unwrap()
    }
}

fn with_tls(tls: TlsFiles) -> ServerConfig {
    ServerConfig { tls: Some(tls), ..ServerConfig::default() }
}

fn secure(server: &Running, path: &str) -> String {
    format!("https://localhost:{}{path}", server.address.port())
}

async fn metrics_have(server: &Running, client: &reqwest::Client, scheme: &str, line: &str) {
    let url = format!("{scheme}://localhost:{}/metrics", server.address.port());
    let mut text = String::new();
    for _ in 0..400 {
        text = client.get(&url).send().await.unwrap().text().await.unwrap();
        if text.lines().any(|other| other == line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("no `{line}` in\n{text}");
}

#[tokio::test]
async fn both_versions_of_http_over_tls_and_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let server = Running::start_with(Fake::default(), with_tls(ours.files(folder.path()))).await;
    let client = ours.client(None);
    let response = client.post(secure(&server, PATH)).json(&body(json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
    let root = reqwest::Certificate::from_pem(ours.pem().as_bytes()).unwrap();
    let old = reqwest::Client::builder().no_proxy().tls_certs_only([root]).http1_only().build().unwrap();
    let response = old.post(secure(&server, PATH)).json(&body(json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_11));
    assert!(server.client.get(server.url("/health")).send().await.is_err(), "nothing in the clear");
    assert!(Authority::new().client(None).get(secure(&server, "/health")).send().await.is_err());

    let server = Running::start(Fake::default()).await;
    let new = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let response = new.post(server.url(PATH)).json(&body(json!({}))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
}

#[tokio::test]
async fn clients_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut files = ours.files(folder.path());
    let ca = folder.path().join("clients.pem");
    fs::write(&ca, ours.pem()).unwrap();
    files.client_ca = Some(ca.clone());
    // With an authority for clients, other machines may be let near.
    let config = ServerConfig { host: "0.0.0.0".to_owned(), ..with_tls(files) };
    let server = Running::start_with(Fake::default(), config).await;
    let get = async |identity| ours.client(identity).get(secure(&server, "/v1/models")).send().await;
    let good = ours.issue(|_| {});
    assert_eq!(get(Some(good.clone())).await.unwrap().status(), 200);
    assert!(get(None).await.is_err(), "no certificate");
    assert!(get(Some(theirs.issue(|_| {}))).await.is_err(), "of another authority");
    let expired = ours.issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(get(Some(expired)).await.is_err(), "expired");
    let early = ours.issue(|params| params.not_before = rcgen::date_time_ymd(2099, 1, 1));
    assert!(get(Some(early)).await.is_err(), "not valid yet");
    let of_servers = ours.issue(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(get(Some(of_servers)).await.is_err(), "not for clients");
    let client = ours.client(Some(good));
    metrics_have(&server, &client, "https", "edgelm_dropped_connections_total{reason=\"handshake\"} 5").await;

    // Another authority takes over, without a restart.
    fs::write(&ca, theirs.pem()).unwrap();
    let until = Instant::now() + Duration::from_secs(8);
    let other = || theirs.issue(|_| {});
    while get(Some(other())).await.is_err() {
        assert!(Instant::now() < until, "the new authority is never taken");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(get(Some(ours.issue(|_| {}))).await.is_err(), "the old one is out");
    assert_eq!(client.get(secure(&server, "/v1/models")).send().await.unwrap().status(), 200, "connected before");
}

#[tokio::test]
async fn revoked_certificates_open_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut files = ours.files(folder.path());
    let (ca, lists) = (folder.path().join("clients.pem"), folder.path().join("crl.pem"));
    fs::write(&ca, ours.pem() + &theirs.pem()).unwrap();
    fs::write(&lists, ours.revoke(&[7])).unwrap();
    files.client_ca = Some(ca);
    files.client_crl = Some(lists.clone());
    let server = Running::start_with(Fake::default(), with_tls(files.clone())).await;
    let get = async |identity| ours.client(Some(identity)).get(secure(&server, "/v1/models")).send().await;
    let of = |authority: &Authority, serial: u64| authority.issue(|params| params.serial_number = Some(serial.into()));
    assert_eq!(get(of(&ours, 6)).await.unwrap().status(), 200);
    assert!(get(of(&ours, 7)).await.is_err(), "revoked");
    assert!(get(of(&theirs, 6)).await.is_err(), "of an authority that says nothing of its certificates");
    fs::write(&lists, ours.revoke(&[6, 7]) + &theirs.revoke(&[])).unwrap();
    let until = Instant::now() + Duration::from_secs(8);
    while get(of(&ours, 6)).await.is_ok() {
        assert!(Instant::now() < until, "the new list is never read");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(get(of(&theirs, 6)).await.unwrap().status(), 200);
    // No list is not an empty one.
    fs::write(&lists, "").unwrap();
    metrics_with(&ours, &server, "edgelm_reloads_total{what=\"certificates\",result=\"failed\"} 1", of(&theirs, 6))
        .await;
    assert!(get(of(&ours, 6)).await.is_err(), "the old list holds");
    let config = with_tls(files);
    let backend: std::sync::Arc<dyn edgelm_serve::Backend> = std::sync::Arc::new(Fake::default());
    let ended = edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await;
    assert!(ended.unwrap_err().to_string().contains("holds no revocation list"));
}

/// The same, for who has to show a certificate.
async fn metrics_with(ours: &Authority, server: &Running, line: &str, identity: (String, String)) {
    metrics_have(server, &ours.client(Some(identity)), "https", line).await;
}

#[tokio::test]
async fn certificates_change_under_running_connections_and_garbage_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    let files = first.files(folder.path());
    let server = Running::start_with(Fake::default(), with_tls(files.clone())).await;
    let (old, new) = (first.client(None), second.client(None));
    let health = async |client: &reqwest::Client| client.get(secure(&server, "/health")).send().await;
    assert_eq!(health(&old).await.unwrap().status(), 200);

    fs::write(&files.cert, "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").unwrap();
    let failed = "edgelm_reloads_total{what=\"certificates\",result=\"failed\"} 1";
    metrics_have(&server, &old, "https", failed).await;
    assert_eq!(health(&first.client(None)).await.unwrap().status(), 200, "the old one is still shown");

    second.files(folder.path());
    let until = Instant::now() + Duration::from_secs(8);
    while health(&new).await.is_err() {
        assert!(Instant::now() < until, "the new certificate is never shown");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(health(&first.client(None)).await.is_err(), "new connections see the new one");
    assert_eq!(health(&old).await.unwrap().status(), 200, "the old connection goes on");
}

#[tokio::test]
async fn files_that_make_no_server_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let files = Authority::new().files(folder.path());
    let message = async |files: &TlsFiles| {
        let backend: std::sync::Arc<dyn edgelm_serve::Backend> = std::sync::Arc::new(Fake::default());
        let config = ServerConfig { port: 0, ..with_tls(files.clone()) };
        edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await.unwrap_err().to_string()
    };
    fs::write(folder.path().join("other.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let at = |name: &str| folder.path().join(name);
    let other_key = TlsFiles { key: at("other.pem"), ..files.clone() };
    assert!(message(&other_key).await.contains("cert.pem"));
    let no_cert = message(&TlsFiles { cert: at("empty.pem"), ..files.clone() }).await;
    assert!(no_cert.contains("empty.pem") && no_cert.contains("no certificate"), "{no_cert}");
    let no_key = message(&TlsFiles { key: at("cert.pem"), ..files.clone() }).await;
    assert!(no_key.contains("no private key"), "{no_key}");
    let missing = message(&TlsFiles { client_ca: Some(at("none.pem")), ..files }).await;
    assert!(missing.contains("none.pem") && missing.contains("cannot be read"), "{missing}");
}

#[tokio::test]
async fn nobody_opens_the_door_by_oversight() {
    let start = async |config: ServerConfig| {
        let backend: std::sync::Arc<dyn edgelm_serve::Backend> = std::sync::Arc::new(Fake::default());
        edgelm_serve::serve(ServerConfig { port: 0, ..config }, backend, std::future::ready(()), |_| {}).await
    };
    let everywhere = || ServerConfig { host: "0.0.0.0".to_owned(), ..ServerConfig::default() };
    assert!(matches!(start(everywhere()).await, Err(ServeError::Exposed { .. })));
    assert!(start(ServerConfig { is_open: true, ..everywhere() }).await.is_ok());
    assert!(start(ServerConfig { api_keys: ["k"].into_iter().collect(), ..everywhere() }).await.is_ok());
    assert!(start(ServerConfig::default()).await.is_ok());
}

#[tokio::test]
async fn a_revoked_key_opens_nothing_within_seconds_and_scopes_hold() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let (user, admin) = (NewKey::random("u", Scope::Use).unwrap(), NewKey::random("a", Scope::Admin).unwrap());
    fs::write(&file, format!("{}\n{}\n", user.line, admin.line)).unwrap();
    let api_keys = ApiKeys::from_file(&file).unwrap();
    let config = ServerConfig { api_keys, ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let ask = async |key: &str| read(server.post(PATH, &body(json!({}))).bearer_auth(key)).await;
    assert_eq!((ask(&user.key).await.0, ask(&admin.key).await.0, ask(&user.line).await.0), (200, 200, 401));
    let metrics = async |key: &str| server.client.get(server.url("/metrics")).bearer_auth(key).send().await.unwrap();
    let refused = metrics(&user.key).await;
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains("insufficient_scope"));
    assert_eq!(metrics(&admin.key).await.status(), 200);

    fs::write(&file, format!("{}\n", admin.line)).unwrap();
    let begin = Instant::now();
    while ask(&user.key).await.0 != 401 {
        assert!(begin.elapsed() < Duration::from_secs(8), "a revoked key still works");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fs::write(&file, "what is this\n").unwrap();
    for _ in 0..400 {
        if metrics(&admin.key).await.text().await.unwrap().contains("{what=\"keys\",result=\"failed\"} 1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!((ask(&admin.key).await.0, ask(&user.key).await.0), (200, 401), "a broken file changes nothing");
    // The last key is revoked too.
    fs::write(&file, "").unwrap();
    let begin = Instant::now();
    while ask(&admin.key).await.0 != 401 {
        assert!(begin.elapsed() < Duration::from_secs(8), "a revoked key still works");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_a_revoked_key_has_begun_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let (gone, kept) = (NewKey::random("gone", Scope::Use).unwrap(), NewKey::random("kept", Scope::Use).unwrap());
    fs::write(&file, format!("{}\n{}\n", gone.line, kept.line)).unwrap();
    let config = ServerConfig { api_keys: ApiKeys::from_file(&file).unwrap(), ..ServerConfig::default() };
    // Longer than the file takes to be looked at again.
    let endless = Fake { token_time: Duration::from_millis(20), eos_after: 1000, context: 2000, ..Fake::default() };
    let server = Running::start_with(endless, config).await;
    let request = |key: &NewKey, extra: Value| server.post(PATH, &body(extra)).bearer_auth(&key.key).send();
    let long = || json!({"max_tokens": 1000, "stream": true});
    let mut streams = Vec::new();
    for key in [&gone, &kept] {
        let mut stream = request(key, long()).await.unwrap().bytes_stream();
        assert!(stream.next().await.unwrap().is_ok());
        streams.push(stream);
    }
    let waiting = tokio::spawn(request(&gone, json!({"max_tokens": 1000})));
    let mut call = crate::grpc::connect(&server).await;
    let mut message = tonic::Request::new(edgelm_serve::proto::v1::GenerateRequest {
        model: server.fake.name.clone(),
        input: Some(edgelm_serve::proto::v1::generate_request::Input::Prompt("a".to_owned())),
        ..Default::default()
    });
    message.metadata_mut().insert("x-api-key", gone.key.parse().unwrap());
    let mut chunks = call.generate_stream(message).await.unwrap().into_inner();
    assert!(chunks.message().await.is_ok());

    // The other key is on another line now, which makes no difference.
    fs::write(&file, format!("# gone\n\n{}\n", kept.line)).unwrap();
    let begin = Instant::now();
    let mut other = streams.pop().unwrap();
    let mut stream = streams.pop().unwrap();
    while let Some(piece) = stream.next().await {
        if piece.is_err() {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(8), "a stream of a revoked key goes on");
    }
    assert_eq!(waiting.await.unwrap().unwrap().status(), 401);
    while chunks.message().await.is_ok_and(|chunk| chunk.is_some()) {
        assert!(begin.elapsed() < Duration::from_secs(8), "a call of a revoked key goes on");
    }
    eventually("their generations end", || server.fake.returned.load(Ordering::SeqCst) == 3).await;
    assert!(other.next().await.unwrap().is_ok(), "the other key's stream goes on");
}

fn hasty() -> ServerConfig {
    let door = DoorLimits { headers: Duration::from_millis(300), unread: Duration::from_millis(300), connections: 8 };
    ServerConfig { door, body_timeout: Duration::from_millis(300), ..ServerConfig::default() }
}

/// Sends a piece every 50 ms until the server ends the connection; says when that was and what it said.
async fn drip(server: &Running, pieces: impl IntoIterator<Item = Vec<u8>>) -> (Duration, String) {
    let (begin, mut said) = (Instant::now(), Vec::new());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for piece in pieces {
        if stream.write_all(&piece).await.is_err() {
            break;
        }
        let mut bytes = [0; 1024];
        match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut bytes)).await {
            Err(_) => {}
            Ok(Ok(count)) if count > 0 => said.extend_from_slice(&bytes[..count]),
            Ok(_) => break,
        }
    }
    (begin.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn who_sends_slowly_is_let_go() {
    let server = Running::start_with(Fake::default(), hasty()).await;
    let most = Duration::from_secs(3);
    let byte = |byte: u8| move || Some(vec![byte]);
    // Nothing at all; the preface of HTTP/2 by bytes; headers by bytes; a body by bytes.
    let nothing = drip(&server, std::iter::repeat_n(Vec::new(), 100)).await;
    let preface =
        drip(&server, b"PRI * HTTP/2.0".iter().map(|&b| vec![b]).chain(std::iter::repeat_n(vec![], 90))).await;
    let head = b"GET /health HTTP/1.1\r\nx: ".to_vec();
    let headers = drip(&server, [head].into_iter().chain(std::iter::from_fn(byte(b'y')).take(100))).await;
    for (took, _) in [nothing, preface, headers] {
        assert!(took < most && took > Duration::from_millis(200), "{took:?}");
    }
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n").into_bytes();
    let (took, said) = drip(&server, [head].into_iter().chain(std::iter::from_fn(byte(b' ')).take(100))).await;
    assert!(took < most && said.contains("408"), "{took:?} {said}");
    metrics_have(&server, &client(), "http", "edgelm_dropped_connections_total{reason=\"slow\"} 3").await;
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let config = ServerConfig { door: hasty().door, ..with_tls(ours.files(folder.path())) };
    let server = Running::start_with(Fake::default(), config).await;
    let (took, _) = drip(&server, std::iter::repeat_n(Vec::new(), 100)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(ours.client(None).get(secure(&server, "/health")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_never_reads_gives_its_place_back() {
    let endless = Fake { context: usize::MAX, eos_after: usize::MAX, ..Fake::default() };
    let server = Running::start_with(endless, ServerConfig { parallel: 1, ..hasty() }).await;
    let request = body(json!({"stream": true, "max_tokens": 100_000_000})).to_string();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{request}", request.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("generation runs", || server.fake.generated.load(Ordering::SeqCst) > 0).await;
    eventually("generation is cancelled", || server.fake.returned.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    // The same over HTTP/2, where the connection itself stays lively.
    let new = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let asked = body(json!({"stream": true, "max_tokens": 100_000_000}));
    let response = new.post(server.url(PATH)).json(&asked).send().await.unwrap();
    let mut unread = response.bytes_stream();
    unread.next().await.unwrap().unwrap();
    eventually("generation is cancelled", || server.fake.returned.load(Ordering::SeqCst) == 2).await;
    assert_eq!(new.get(server.url("/health")).send().await.unwrap().status(), 200, "the same connection");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_outside() {
    let door = DoorLimits { connections: 1, headers: Duration::from_millis(800), ..DoorLimits::default() };
    let server = Running::start_with(Fake::default(), ServerConfig { door, ..ServerConfig::default() }).await;
    let first = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let health = tokio::spawn(server.client.get(server.url("/health")).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!health.is_finished(), "there is no room");
    drop(first);
    assert_eq!(health.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_has_so_many_requests_and_tokens_a_minute() {
    let rates = RateLimits { requests: Some(3), tokens: Some(20) };
    let api_keys = ["k1", "k2"].into_iter().collect();
    let server =
        Running::start_with(Fake::default(), ServerConfig { rates, api_keys, ..ServerConfig::default() }).await;
    let ask = async |key: &str, extra: Value| server.post(PATH, &body(extra)).bearer_auth(key).send().await.unwrap();
    let header = |response: &reqwest::Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    let first = ask("k1", json!({})).await;
    assert_eq!(first.status(), 200);
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), "3");
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "2");
    // One of the prompt, five of the answer.
    assert_eq!(header(&first, "x-ratelimit-remaining-tokens"), "14");
    assert_eq!(
        (ask("k1", json!({})).await.status(), ask("k1", json!({})).await.status()),
        (reqwest::StatusCode::OK, reqwest::StatusCode::OK)
    );
    let refused = ask("k1", json!({})).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    let answer: Value = refused.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "rate_limit_exceeded");
    let models = server.client.get(server.url("/v1/models")).bearer_auth("k1").send().await.unwrap();
    assert_eq!(models.status(), 200, "lists are no work");
    // Another client has its own; a long answer takes all of it, also as a stream, and also embeddings count.
    let long = ask("k2", json!({"prompt": "a ".repeat(30), "stream": true})).await;
    assert!(long.text().await.unwrap().contains("[DONE]"));
    let refused = ask("k2", json!({})).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.text().await.unwrap().contains("20 tokens in a minute"));
}

#[tokio::test]
async fn pages_of_named_origins_may_use_the_api() {
    let cors_origins = vec!["https://chat.example.org".parse().unwrap()];
    let api_keys = ["k"].into_iter().collect();
    let config = ServerConfig { cors_origins, api_keys, ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let from = |origin: &str| server.post(PATH, &body(json!({}))).bearer_auth("k").header("origin", origin);
    let allowed = from("https://chat.example.org").send().await.unwrap();
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://chat.example.org");
    let refused = from("https://other.example.org").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(refused.headers().get("access-control-allow-origin").is_none());
    // The question before, which browsers ask without the key.
    let question = server.client.request(reqwest::Method::OPTIONS, server.url(PATH));
    let question = question
        .header("origin", "https://chat.example.org")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization, content-type");
    let answer = question.send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["access-control-allow-headers"], "authorization, content-type");
    let keyless =
        server.post(PATH, &body(json!({}))).header("origin", "https://chat.example.org").send().await.unwrap();
    assert_eq!(keyless.status(), 401, "an origin is no key");
}

/// Sends all of it over one connection, and returns the heads of the answers that come.
async fn heads(server: &Running, requests: &[Vec<u8>]) -> Vec<String> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut heads = Vec::new();
    for request in requests {
        if stream.write_all(request).await.is_err() {
            break;
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return heads };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        heads.push(head);
    }
    heads
}

/// A client that keeps its connection is told when it cannot.
#[tokio::test]
async fn a_refusal_reads_the_rest_of_a_body_or_says_that_the_connection_ends() {
    let config = ServerConfig { api_keys: ["k1"].into_iter().collect(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    let request = |more: &str, bytes: usize| {
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{more}content-length: {bytes}\r\n\r\n");
        [head.into_bytes(), vec![b' '; bytes]].concat()
    };
    let closes = |head: &str| head.contains("\r\nconnection: close\r\n");
    let answers = heads(&server, &[request("", 100), request("", 200_000), request("", 0)]).await;
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert!(answers.iter().all(|head| head.starts_with("http/1.1 401") && !closes(head)), "{answers:?}");
    // More than is read for nothing: here the body never comes.
    let long = request("", 0).iter().map(|&byte| byte as char).collect::<String>();
    let long = long.replace("content-length: 0", "content-length: 300000").into_bytes();
    let answers = heads(&server, std::slice::from_ref(&long)).await;
    assert!(closes(&answers[0]), "{answers:?}");
    // Nor is it asked for.
    let held = long.iter().map(|&byte| byte as char).collect::<String>();
    let held = held.replace("300000", "300").replace("host: a", "host: a\r\nexpect: 100-continue").into_bytes();
    let answers = heads(&server, &[held]).await;
    assert!(answers[0].starts_with("http/1.1 401") && closes(&answers[0]), "{answers:?}");
    // One that comes too slowly does not hold the answer up.
    let begin = Instant::now();
    let slow = request("", 300)[..200].to_vec();
    assert!(closes(&heads(&server, &[slow]).await[0]));
    assert!(begin.elapsed() < Duration::from_secs(10));
    // What is read is read.
    let body = body(json!({})).to_string();
    let good = format!(
        "POST {PATH} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer k1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answers = heads(&server, &[good.clone().into_bytes(), good.into_bytes()]).await;
    assert!(answers.len() == 2 && answers.iter().all(|head| head.starts_with("http/1.1 200") && !closes(head)));
}
