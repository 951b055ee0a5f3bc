//! Pulls against a local hub that redirects, stalls, breaks off and lies.

#![allow(clippy::unwrap_used)]

mod server;

use edgelm_fleet::hub::{HubError, Pulled, Settings, pull};
use server::{Fault, Hub};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn settings(hub: &Hub, cache: &Path) -> Settings {
    Settings {
        endpoint: hub.url(),
        token: None,
        cache: cache.to_owned(),
        offline: false,
        proxies: false,
        connect_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_millis(300),
        attempts: 3,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
    }
}

async fn get(reference: &str, settings: &Settings) -> Result<Pulled, HubError> {
    pull(&reference.parse().unwrap(), settings, &mut |_| ()).await
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn one_gguf() -> (Hub, tempfile::TempDir) {
    let hub = Hub::start().await;
    hub.add("m-Q4_0.gguf", weights(), true);
    (hub, tempfile::tempdir().unwrap())
}

fn repo(cache: &Path) -> PathBuf {
    cache.join("models--org--name")
}

fn incomplete(cache: &Path) -> PathBuf {
    repo(cache).join("blobs").join(format!("{}.incomplete", sha256(&weights())))
}

/// The blobs folder's file names.
fn blobs(cache: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(repo(cache).join("blobs"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_is_laid_out_as_the_hubs_tools_do() {
    let hub = Hub::start().await;
    hub.add("README.md", b"hello\n".to_vec(), false);
    hub.add("config.json", b"hello\n".to_vec(), false);
    hub.add("tokenizer.json", b"{}".to_vec(), false);
    hub.add("model.safetensors", weights(), true);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&hub, folder.path());
    let mut seen = Vec::new();
    let pulled = pull(&"hf.co/org/name".parse().unwrap(), &settings, &mut |progress| {
        seen.push((progress.file.to_owned(), progress.file_done_bytes, progress.done_bytes, progress.total_bytes));
    })
    .await
    .unwrap();

    let snapshot = repo(folder.path()).join("snapshots").join(COMMIT);
    assert_eq!((&pulled.path, pulled.commit.as_str()), (&snapshot, COMMIT));
    assert_eq!(pulled.bytes, 300_008);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), b"hello\n");
    assert!(!snapshot.join("README.md").exists());
    assert_eq!(fs::read_to_string(repo(folder.path()).join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    {
        let target = fs::read_link(snapshot.join("config.json")).unwrap();
        assert_eq!(target, Path::new("../../blobs/ce013625030ba8dba906f756967f9e9ca394464a"));
    }
    assert_eq!(blobs(folder.path()).len(), 3);
    let lines: String =
        [("config.json", &b"hello\n"[..]), ("model.safetensors", &weights()), ("tokenizer.json", b"{}")]
            .iter()
            .map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes)))
            .collect();
    assert_eq!(pulled.digest, format!("sha256:{}", sha256(lines.as_bytes())));
    assert_eq!(seen.last().unwrap(), &("tokenizer.json".to_owned(), 2, 300_008, 300_008));
    assert!(seen.is_sorted_by_key(|(_, _, done, _)| *done));

    // Again: only the listing is asked for. Offline: nothing is.
    let before = hub.requests().len();
    assert_eq!(get("hf.co/org/name", &settings).await.unwrap(), pulled);
    assert_eq!(hub.requests()[before..].len(), 1);
    let offline = Settings { offline: true, ..settings };
    assert_eq!(get("hf.co/org/name", &offline).await.unwrap(), pulled);
    assert_eq!(get(&format!("hf.co/org/name@{COMMIT}"), &offline).await.unwrap(), pulled);
    assert_eq!(hub.requests().len(), before + 1);
}

#[tokio::test]
async fn files_in_folders_and_odd_revisions() {
    let hub = Hub::start().await;
    hub.add("quants/m-Q8_0.gguf", weights(), true);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&hub, folder.path());
    let pulled = get("hf.co/org/name@refs/pr/1:q8_0", &settings).await.unwrap();
    assert!(pulled.path.ends_with("quants/m-Q8_0.gguf"));
    assert_eq!(fs::read(&pulled.path).unwrap(), weights());
    assert_eq!(pulled.digest, format!("sha256:{}", sha256(&weights())));
    assert_eq!(hub.requests()[0].path, "/api/models/org/name/revision/refs%2Fpr%2F1");
    assert_eq!(fs::read_to_string(repo(folder.path()).join("refs/refs/pr/1")).unwrap(), COMMIT);
    let offline = Settings { offline: true, ..settings };
    assert_eq!(get("hf.co/org/name@refs/pr/1:Q8_0", &offline).await.unwrap(), pulled);
}

#[tokio::test]
async fn offline_and_not_there() {
    let (hub, folder) = one_gguf().await;
    let offline = Settings { offline: true, ..settings(&hub, folder.path()) };
    let error = get("hf.co/org/name", &offline).await.unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }) && error.hint().unwrap().contains("HF_HUB_OFFLINE"));
    assert!(hub.requests().is_empty());
}

#[tokio::test]
async fn offline_a_missing_shard_is_named() {
    let hub = Hub::start().await;
    hub.add("config.json", b"{}".to_vec(), false);
    hub.add("model-00001-of-00002.safetensors", weights(), true);
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    hub.add("model.safetensors.index.json", index.to_vec(), false);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&hub, folder.path());
    get("hf.co/org/name", &settings).await.unwrap();
    let error = get("hf.co/org/name", &Settings { offline: true, ..settings }).await.unwrap_err();
    assert!(error.to_string().contains("`model-00002-of-00002.safetensors` is not in the cache"));
}

#[tokio::test]
async fn the_token_stays_with_the_endpoint() {
    let (hub, folder) = one_gguf().await;
    let storage = Hub::start().await;
    storage.add("m-Q4_0.gguf", weights(), true);
    hub.fault("/resolve/", Fault::RedirectTo(storage.url()));
    let settings = Settings { token: Some("hf_secret".to_owned()), ..settings(&hub, folder.path()) };
    get("hf.co/org/name", &settings).await.unwrap();
    assert!(hub.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let stored = storage.requests();
    assert_eq!(stored.len(), 1);
    assert!(stored[0].header("authorization").is_none());
}

#[tokio::test]
async fn a_broken_connection_is_resumed() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/resolve/", Fault::BreakAfter(100_000));
    hub.fault("/resolve/", Fault::BreakAfter(50_000));
    let pulled = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), weights());
    let requests = hub.requests();
    let ranges: Vec<Option<&str>> = requests[1..].iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-"), Some("bytes=150000-")]);
    assert_eq!(requests[2].header("if-range"), Some("\"v1\""));
    assert_eq!(blobs(folder.path()), [sha256(&weights())], "nothing temporary is left");
}

#[tokio::test]
async fn a_stalled_connection_is_resumed() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/resolve/", Fault::StallAfter(100_000));
    let pulled = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), weights());
    assert_eq!(hub.requests()[2].header("range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn a_stalled_listing_is_tried_again() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/api/", Fault::StallAfter(10));
    assert!(get("hf.co/org/name", &settings(&hub, folder.path())).await.is_ok());
}

#[tokio::test]
async fn a_stopped_pull_goes_on_later() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/resolve/", Fault::StallAfter(100_000));
    let patient = Settings { read_timeout: Duration::from_secs(60), ..settings(&hub, folder.path()) };
    let stopped = tokio::time::timeout(Duration::from_millis(500), get("hf.co/org/name", &patient)).await;
    assert!(stopped.is_err());
    // Writing goes on behind the future's back for a moment.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let have = fs::metadata(incomplete(folder.path())).unwrap().len();
    assert!(have > 0 && !repo(folder.path()).join("refs").exists());
    get("hf.co/org/name", &patient).await.unwrap();
    assert_eq!(hub.requests().last().unwrap().header("range"), Some(format!("bytes={have}-").as_str()));
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_comes_whole() {
    let (hub, folder) = one_gguf().await;
    let part = incomplete(folder.path());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, vec![7; 1000]).unwrap();
    fs::write(part.with_extension("incomplete.etag"), "\"v0\"").unwrap();
    let pulled = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), weights());
    assert_eq!(hub.requests().len(), 2);
}

#[tokio::test]
async fn a_wrong_beginning_is_thrown_away_once() {
    let (hub, folder) = one_gguf().await;
    let part = incomplete(folder.path());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    for beginning in [vec![7; 1000], vec![7; 300_000], vec![7; 300_001]] {
        fs::remove_dir_all(repo(folder.path()).join("blobs")).unwrap();
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, beginning).unwrap();
        let pulled = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap();
        assert_eq!(fs::read(pulled.path).unwrap(), weights());
        assert_eq!(blobs(folder.path()), [sha256(&weights())]);
    }
}

#[tokio::test]
async fn busy_servers_are_waited_for() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/api/", Fault::Status(429, Some("1")));
    hub.fault("/api/", Fault::Status(503, None));
    hub.fault("/resolve/", Fault::Status(500, None));
    hub.fault("/resolve/", Fault::Status(429, Some("0")));
    let started = Instant::now();
    get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!(hub.requests().len(), 6);
}

#[tokio::test]
async fn patience_ends() {
    let (hub, folder) = one_gguf().await;
    for _ in 0..3 {
        hub.fault("/resolve/", Fault::Status(503, None));
    }
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(
        matches!(&error, HubError::GaveUp { attempts: 3, source } if matches!(**source, HubError::Status { status: 503, .. }))
    );
    hub.fault("/api/", Fault::Status(429, Some("3600")));
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::GaveUp { attempts: 1, .. }));
}

#[tokio::test]
async fn nobody_there() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    let settings = Settings { endpoint: "http://127.0.0.1:9".to_owned(), ..settings(&hub, folder.path()) };
    let error = get("hf.co/org/name", &settings).await.unwrap_err();
    assert!(matches!(&error, HubError::GaveUp { source, .. } if matches!(**source, HubError::Network { .. })));
    for endpoint in ["ftp://x", "nonsense"] {
        let settings = Settings { endpoint: endpoint.to_owned(), ..settings.clone() };
        let error = get("hf.co/org/name", &settings).await.unwrap_err();
        assert!(matches!(error, HubError::Setting { variable: "HF_ENDPOINT", .. }));
    }
}

#[tokio::test]
async fn wrong_content_is_refused() {
    let hub = Hub::start().await;
    hub.add("m-Q4_0.gguf", weights(), true);
    hub.replace_content("m-Q4_0.gguf", vec![0; 300_000]);
    hub.add("config.json", b"{}".to_vec(), false);
    hub.replace_content("config.json", b"[]".to_vec());
    let folder = tempfile::tempdir().unwrap();
    for name in ["m-Q4_0.gguf", "config.json"] {
        let before = hub.requests().len();
        let error = get(&format!("hf.co/org/name:{name}"), &settings(&hub, folder.path())).await.unwrap_err();
        assert!(matches!(&error, HubError::Digest { file, .. } if file == name));
        assert_eq!(hub.requests().len() - before, 2, "a wrong file is not asked for again");
        assert_eq!(blobs(folder.path()), Vec::<String>::new());
    }
    assert!(!repo(folder.path()).join("refs").exists());
}

#[tokio::test]
async fn wrong_sizes_are_refused() {
    let (hub, folder) = one_gguf().await;
    hub.replace_content("m-Q4_0.gguf", vec![0; 300_001]);
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::Size { got: 300_001, want: 300_000, .. }));
    // Without a length up front, too much is noticed on the way, and too little at the end.
    hub.fault("/resolve/", Fault::NoLength);
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::Size { .. }));
    hub.replace_content("m-Q4_0.gguf", weights()[..1000].to_vec());
    for _ in 0..3 {
        hub.fault("/resolve/", Fault::NoLength);
    }
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(&error, HubError::GaveUp { .. } | HubError::Size { .. }), "{error:?}");
}

#[tokio::test]
async fn refusals_have_hints() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/api/", Fault::Status(401, None));
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::Denied { status: 401, .. }) && error.hint().unwrap().contains("HF_TOKEN"));
    hub.fault("/api/", Fault::Status(403, None));
    let with_token = Settings { token: Some("hf_secret".to_owned()), ..settings(&hub, folder.path()) };
    let error = get("hf.co/org/name", &with_token).await.unwrap_err();
    assert!(matches!(error, HubError::Denied { status: 403, .. }) && error.hint().unwrap().contains("terms"));
    assert!(!format!("{error:?} {error}").contains("secret"));
    hub.fault("/api/", Fault::Status(404, None));
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }));
    hub.fault("/resolve/", Fault::Status(404, None));
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::NotFound { url } if url.ends_with("/m-Q4_0.gguf")));
}

#[tokio::test]
async fn bad_listings_are_refused() {
    let (hub, folder) = one_gguf().await;
    for body in ["{", "[]", "{\"sha\": \"x\", \"siblings\": []}"] {
        hub.fault("/api/", Fault::Body(body.to_owned()));
        let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
        assert!(matches!(error, HubError::Listing { .. }), "{body}");
    }
    hub.add("../../../outside.gguf", weights(), true);
    let error = get("hf.co/org/name", &settings(&hub, folder.path())).await.unwrap_err();
    assert!(matches!(error, HubError::UnsafeName { .. }));
}

#[tokio::test]
async fn two_pulls_fetch_once() {
    let (hub, folder) = one_gguf().await;
    hub.fault("/resolve/", Fault::Slow);
    let settings = settings(&hub, folder.path());
    let (one, two) = tokio::join!(get("hf.co/org/name", &settings), get("hf.co/org/name:Q4_0", &settings));
    assert_eq!(one.unwrap(), two.unwrap());
    let fetched = hub.requests().iter().filter(|request| request.path.contains("/resolve/")).count();
    assert_eq!(fetched, 1);
}

#[tokio::test]
async fn an_unwritable_cache_is_named() {
    let (hub, folder) = one_gguf().await;
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = get("hf.co/org/name", &settings(&hub, &file)).await.unwrap_err();
    assert!(matches!(&error, HubError::Io { path, .. } if path.starts_with(&file)));
}
