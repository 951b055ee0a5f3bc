//! The audit log: what `verify` finds, what a restart does, and what a server writes.

use crate::fake::{Fake, Running, eventually};
use edgelm_serve::{
    ServerConfig,
    audit::{
        AuditConfig, AuditError, Fsync, LogConfig, OnFailure, Place, Report, SigningKey, VerifyOptions, VerifyingKey,
        verify,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// A folder with a key and a log.
struct Scene {
    folder: TempDir,
    key: Arc<SigningKey>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = SigningKey::create(&folder.path().join("key")).unwrap();
        Self { folder, key: Arc::new(key) }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn config(&self) -> AuditConfig {
        let log =
            LogConfig { path: self.log(), key: Some(Arc::clone(&self.key)), rotate_bytes: 3000, fsync: Fsync::Record };
        AuditConfig {
            log,
            checkpoint_records: 4,
            checkpoint_interval: Duration::from_secs(3600),
            on_failure: OnFailure::Refuse,
            with_content: false,
        }
    }

    async fn serve(&self, audit: AuditConfig) -> Running {
        Running::start_with(Fake::default(), ServerConfig { audit: Some(audit), ..ServerConfig::default() }).await
    }

    fn verify(&self) -> Report {
        verify(&[self.log()], &self.trust()).unwrap()
    }

    fn trust(&self) -> VerifyOptions {
        VerifyOptions { trust: vec![self.key.verifying_key()], ..VerifyOptions::default() }
    }

    fn records(&self) -> Vec<Value> {
        let files = self.verify().files;
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

async fn ask(server: &Running, prompt: &str) -> u16 {
    server.ask("/v1/completions", json!({"model": "org/fake-1", "prompt": prompt, "max_tokens": 3})).await.0
}

async fn end(mut server: Running) {
    server.ask_to_stop();
    server.ended().await.unwrap();
}

/// A closed log of several files, made by a server.
async fn sample() -> Scene {
    let place = Scene::new();
    let server = place.serve(place.config()).await;
    for index in 0..12 {
        assert_eq!(ask(&server, &format!("a prompt number {index}")).await, 200);
    }
    end(server).await;
    place
}

#[tokio::test]
async fn every_request_has_a_record() {
    let place = Scene::new();
    let server = place.serve(place.config()).await;
    assert_eq!(ask(&server, "one two").await, 200);
    let (status, _) = server.ask("/v1/completions", json!({"model": "none", "prompt": "x"})).await;
    assert_eq!(status, 404);
    let body = json!({"model": "org/fake-1", "messages": [{"role": "user", "content": "hi there"}], "stream": true});
    let request = server.post("/v1/chat/completions", &body).header("x-request-id", "mine-7");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    response.bytes().await.unwrap();
    let (status, _) = server.ask("/v1/embeddings", json!({"model": "org/fake-1", "input": "one two three"})).await;
    assert_eq!(status, 200);
    server.get("/health").await;
    assert!(server.metrics().await.contains("edgelm_audit_failing 0"));
    end(server).await;

    let report = place.verify();
    assert!(report.ok && report.is_closed && report.end_is_stated, "{report:?}");
    let all = place.records();
    assert_eq!(all[0]["kind"], "start");
    assert!(all.iter().any(|record| record["event"] == "model_loaded"));
    let requests: Vec<&Value> = all.iter().filter(|record| record["kind"] == "request").collect();
    assert_eq!(requests.len(), 4, "neither /health nor /metrics has a record");
    let first = requests[0];
    assert_eq!(
        (&first["api"], &first["status"], &first["result"]),
        (&json!("/v1/completions"), &json!(200), &json!("length"))
    );
    assert_eq!((&first["prompt_tokens"], &first["generated_tokens"]), (&json!(2), &json!(3)));
    assert_eq!((&first["model"], &first["client"]), (&json!("org/fake-1"), &json!("127.0.0.1")));
    // printf '\3\0\0\0\3\0\0\0' | sha256sum
    assert_eq!(first["prompt_sha256"], "f9815db16d8d228cca743c75d4cb4ddffd3a6d7cd6518658c9d3bd0e4fe27c82");
    assert!(first.get("prompt").is_none() && first.get("answers").is_none());
    assert_eq!((&requests[1]["status"], &requests[1]["result"]), (&json!(404), &json!("model_not_found")));
    assert_eq!((&requests[2]["request_id"], &requests[2]["result"]), (&json!("mine-7"), &json!("stop")));
    assert_eq!(requests[3]["prompt_tokens"], 3);
}

#[tokio::test]
async fn contents_only_where_they_are_asked_for() {
    let place = Scene::new();
    let server = place.serve(AuditConfig { with_content: true, ..place.config() }).await;
    assert_eq!(ask(&server, "one two").await, 200);
    end(server).await;
    let all = place.records();
    let record = all.iter().find(|record| record["kind"] == "request").unwrap();
    assert_eq!((&record["prompt"], &record["answers"]), (&json!("w3 w3 "), &json!(["w0 w1 w2 "])));
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded() {
    let place = Scene::new();
    let fake = Fake { eos_after: 60, token_time: Duration::from_millis(20), ..Fake::default() };
    let config = ServerConfig { audit: Some(place.config()), ..ServerConfig::default() };
    let server = Running::start_with(fake, config).await;
    let body = json!({"model": "org/fake-1", "prompt": "x", "max_tokens": 50, "stream": true});
    let mut response = server.post("/v1/completions", &body).send().await.unwrap();
    response.chunk().await.unwrap();
    drop(response);
    let fake = Arc::clone(&server.fake);
    eventually("the generation ends", || fake.returned.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    end(server).await;
    let all = place.records();
    let record = all.iter().find(|record| record["kind"] == "request").unwrap();
    assert_eq!((&record["result"], &record["status"]), (&json!("cancelled"), &json!(200)));
    assert!(record["generated_tokens"].as_u64().unwrap() < 50);
}

#[tokio::test]
async fn a_restart_goes_on_and_a_cut_record_is_named() {
    let place = sample().await;
    let before = place.verify();
    assert!(before.ok && before.files.len() > 2 && before.unclean_starts == 0, "{before:?}");
    end(place.serve(place.config()).await).await;
    let after = place.verify();
    assert!(after.ok && after.records > before.records && after.unclean_starts == 0);

    // As a process that is killed in the middle of a write leaves it.
    let mut text = fs::read(place.log()).unwrap();
    let cut = text.len() - 40;
    text.truncate(cut);
    fs::write(place.log(), &text).unwrap();
    assert!(!place.verify().ok, "a cut end is found");
    let server = place.serve(place.config()).await;
    assert_eq!(ask(&server, "go on").await, 200);
    end(server).await;
    let report = verify(&[place.log()], &VerifyOptions::default()).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.torn_lines, report.unclean_starts), (1, 1));
    assert!(place.records().iter().any(|record| record["kind"] == "torn"));
}

#[tokio::test]
async fn a_log_that_was_changed_is_not_gone_on_with() {
    let place = sample().await;
    let text = fs::read_to_string(place.log()).unwrap();
    fs::write(place.log(), text.replacen("127.0.0.1", "127.0.0.2", 1).replacen("\"last\":true", "\"last\":null", 1))
        .unwrap();
    let config = ServerConfig { audit: Some(place.config()), port: 0, ..ServerConfig::default() };
    let backend: Arc<dyn edgelm_serve::Backend> = Arc::new(Fake::default());
    let error = edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await.unwrap_err();
    assert!(matches!(error, edgelm_serve::ServeError::Audit(AuditError::Broken { .. })), "{error}");
}

#[tokio::test]
async fn one_process_at_a_time() {
    let place = Scene::new();
    let server = place.serve(place.config()).await;
    let config = ServerConfig { audit: Some(place.config()), port: 0, ..ServerConfig::default() };
    let backend: Arc<dyn edgelm_serve::Backend> = Arc::new(Fake::default());
    let error = edgelm_serve::serve(config, backend, std::future::pending(), |_| {}).await.unwrap_err();
    assert!(matches!(error, edgelm_serve::ServeError::Audit(AuditError::InUse { .. })), "{error}");
    end(server).await;
}

/// A folder in place of the next file makes every write of a new record fail.
#[tokio::test]
async fn what_cannot_be_recorded_is_refused_or_counted() {
    for on_failure in [OnFailure::Refuse, OnFailure::Continue] {
        let place = Scene::new();
        let mut config = AuditConfig { on_failure, ..place.config() };
        config.log.rotate_bytes = 1;
        let server = place.serve(config).await;
        // Numbers that rotation must not overwrite.
        for number in 0..40 {
            let taken = place.folder.path().join(format!("audit.jsonl.{number:06}"));
            let _ = fs::create_dir(taken);
        }
        let mut statuses = Vec::new();
        for _ in 0..200 {
            statuses.push(ask(&server, "x").await);
            if server.metrics().await.contains("edgelm_audit_failing 1") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = ask(&server, "x").await;
        let expected = if on_failure == OnFailure::Refuse { 503 } else { 200 };
        assert_eq!(status, expected, "{statuses:?}");
        for number in 0..40 {
            // Fails for the files of the log.
            let _ = fs::remove_dir(place.folder.path().join(format!("audit.jsonl.{number:06}")));
        }
        let metrics = async || server.metrics().await;
        for _ in 0..300 {
            if metrics().await.contains("edgelm_audit_failing 0") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(ask(&server, "x").await, 200);
        end(server).await;
        let report = place.verify();
        assert!(report.ok, "{report:?}");
        assert_eq!(report.requests as usize, statuses.len() + 2, "all are there");
    }
}

#[tokio::test]
async fn a_chain_computed_anew_lacks_signatures() {
    let honest = sample().await;
    let forged = sample().await;
    let report = verify(&[forged.log()], &honest.trust()).unwrap();
    assert!(!report.ok && report.signed_checkpoints == 0);
    assert!(verify(&[forged.log()], &VerifyOptions::default()).unwrap().ok, "the chain itself holds");
    // An older end of the log together with its own checkpoint: only who knows the later one finds it.
    let last: Place = honest.verify().last.parse().unwrap();
    let beyond = Place { records: last.records + 5, head: [1; 32] };
    assert!(!verify(&[honest.log()], &VerifyOptions { last: Some(beyond), ..honest.trust() }).unwrap().ok);
    assert!(verify(&[honest.log()], &VerifyOptions { last: Some(last), ..honest.trust() }).unwrap().ok);
}

#[tokio::test]
async fn older_files_may_be_put_away() {
    let place = sample().await;
    let files = place.verify().files;
    fs::remove_file(&files[0]).unwrap();
    assert!(!place.verify().ok, "a missing first file is found");
    let first: Value = serde_json::from_str(fs::read_to_string(&files[1]).unwrap().lines().next().unwrap()).unwrap();
    let after: Place = format!("{}:{}", first["seq"], first["prev"].as_str().unwrap()).parse().unwrap();
    let report = verify(&[place.log()], &VerifyOptions { after: Some(after), ..place.trust() }).unwrap();
    assert!(report.ok, "{report:?}");
}

/// What is done to a log.
#[derive(Debug, Clone)]
enum Attack {
    /// Bytes from here to the file's end.
    CutEnd {
        file: usize,
        at: usize,
    },
    /// Some bytes in the middle.
    CutMiddle {
        file: usize,
        at: usize,
        len: usize,
    },
    Edit {
        file: usize,
        at: usize,
        to: u8,
    },
    RemoveLine {
        file: usize,
        line: usize,
    },
    RepeatLine {
        file: usize,
        line: usize,
    },
    SwapLines {
        file: usize,
        a: usize,
        b: usize,
    },
    RemoveFile {
        file: usize,
    },
    SwapFiles {
        a: usize,
        b: usize,
    },
}

fn attacks() -> impl Strategy<Value = Attack> {
    let n = || any::<usize>();
    prop_oneof![
        (n(), n()).prop_map(|(file, at)| Attack::CutEnd { file, at }),
        (n(), n(), 1usize..500).prop_map(|(file, at, len)| Attack::CutMiddle { file, at, len }),
        (n(), n(), any::<u8>()).prop_map(|(file, at, to)| Attack::Edit { file, at, to }),
        (n(), n()).prop_map(|(file, line)| Attack::RemoveLine { file, line }),
        (n(), n()).prop_map(|(file, line)| Attack::RepeatLine { file, line }),
        (n(), n(), n()).prop_map(|(file, a, b)| Attack::SwapLines { file, a, b }),
        n().prop_map(|file| Attack::RemoveFile { file }),
        (n(), n()).prop_map(|(a, b)| Attack::SwapFiles { a, b }),
    ]
}

/// The files after the attack; `None` for one that is gone.
fn attacked(files: &[Vec<u8>], attack: &Attack) -> Vec<Option<Vec<u8>>> {
    let mut all: Vec<Option<Vec<u8>>> = files.iter().cloned().map(Some).collect();
    let lines =
        |file: &Vec<u8>| -> Vec<Vec<u8>> { file.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect() };
    let n = files.len();
    match *attack {
        Attack::CutEnd { file, at } => {
            let text = all[file % n].as_mut().unwrap();
            text.truncate(at % text.len());
        }
        Attack::CutMiddle { file, at, len } => {
            let text = all[file % n].as_mut().unwrap();
            let at = at % text.len();
            text.drain(at..text.len().min(at + len));
        }
        Attack::Edit { file, at, to } => {
            let text = all[file % n].as_mut().unwrap();
            let at = at % text.len();
            text[at] = to;
        }
        Attack::RemoveLine { file, line } => {
            let mut text = lines(&files[file % n]);
            text.remove(line % text.len());
            all[file % n] = Some(text.concat());
        }
        Attack::RepeatLine { file, line } => {
            let mut text = lines(&files[file % n]);
            let line = line % text.len();
            text.insert(line, text[line].clone());
            all[file % n] = Some(text.concat());
        }
        Attack::SwapLines { file, a, b } => {
            let mut text = lines(&files[file % n]);
            let count = text.len();
            text.swap(a % count, b % count);
            all[file % n] = Some(text.concat());
        }
        Attack::RemoveFile { file } => all[file % n] = None,
        // The order of files is that of their records, whatever they are called: not an attack.
        Attack::SwapFiles { a, b } => all.swap(a % n, b % n),
    }
    all
}

#[test]
fn every_cut_edit_and_reordering_is_found() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = runtime.block_on(sample());
    let report = place.verify();
    assert!(report.ok && report.files.len() >= 3);
    let files: Vec<Vec<u8>> = report.files.iter().map(|file| fs::read(file).unwrap()).collect();
    let note = fs::read(place.folder.path().join("audit.jsonl.checkpoint")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let check = |attack: &Attack| {
        let after = attacked(&files, attack);
        let is_changed = after.iter().map(Option::as_deref).ne(files.iter().map(|file| Some(file.as_slice())));
        let is_renamed = matches!(attack, Attack::SwapFiles { .. });
        let (path, options) = (scratch.path().join("audit.jsonl"), place.trust());
        lay(scratch.path(), &report.files, &after, &note);
        if after.last().is_some_and(Option::is_none) {
            // Without its newest file there is no such path; those that are left must not pass for a log.
            let left: Vec<PathBuf> =
                report.files[..files.len() - 1].iter().map(|f| scratch.path().join(f.file_name().unwrap())).collect();
            let options = VerifyOptions { checkpoint: Some(scratch.path().join("audit.jsonl.checkpoint")), ..options };
            assert!(!verify(&left, &options).unwrap().ok, "{attack:?}");
            return;
        }
        let found = verify(&[path], &options).unwrap();
        assert_eq!(found.ok, !is_changed || is_renamed, "{attack:?}: {:?}", found.findings);
    };
    proptest!(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }, |(attack in attacks())| {
        check(&attack);
    });
    // Every length of the newest file, and every whole number of its lines.
    for at in 0..files.last().unwrap().len() {
        check(&Attack::CutEnd { file: files.len() - 1, at });
    }
}

fn lay(folder: &Path, names: &[PathBuf], files: &[Option<Vec<u8>>], note: &[u8]) {
    for (name, file) in names.iter().zip(files) {
        let path = folder.join(name.file_name().unwrap());
        match file {
            Some(text) => fs::write(path, text).unwrap(),
            None => _ = fs::remove_file(path),
        }
    }
    fs::write(folder.join("audit.jsonl.checkpoint"), note).unwrap();
}

#[test]
fn keys_are_read_as_words() {
    let place = Scene::new();
    let key = place.key.verifying_key();
    assert_eq!(key.to_string().parse::<VerifyingKey>(), Ok(key));
    assert!("ed25519:00".parse::<VerifyingKey>().is_err());
}
