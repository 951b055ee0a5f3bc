//! A small hub on a free port, which does what it is told wrong: once per fault, in order.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde_json::json;
use sha1::Digest;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What goes wrong with one request.
pub enum Fault {
    Status(u16, Option<&'static str>),
    Body(String),
    /// The same path there.
    RedirectTo(String),
    /// The connection ends after that many bytes of the answer.
    BreakAfter(usize),
    /// Nothing more comes after that many bytes of the answer.
    StallAfter(usize),
    /// Chunked instead of with a length.
    NoLength,
    /// Takes a tenth of a second.
    Slow,
}

/// A request as it came.
#[derive(Clone)]
pub struct Seen {
    pub path: String,
    headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

struct Stored {
    content: Vec<u8>,
    listed: serde_json::Value,
}

#[derive(Default)]
struct Contents {
    files: Mutex<BTreeMap<String, Stored>>,
    /// With a piece of the path that it waits for.
    faults: Mutex<Vec<(String, Fault)>>,
    requests: Mutex<Vec<Seen>>,
}

/// The server; one repository, whatever the path says. It ends with the test's runtime.
pub struct Hub {
    address: SocketAddr,
    contents: Arc<Contents>,
}

impl Hub {
    pub async fn start() -> Self {
        let contents = Arc::new(Contents::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&contents));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, contents }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lists a file and holds it.
    pub fn add(&self, name: &str, content: Vec<u8>, lfs: bool) {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut git = sha1::Sha1::new();
        git.update(format!("blob {}\0", content.len()));
        git.update(&content);
        let mut listed = json!({"rfilename": name, "size": content.len(), "blobId": hex(&git.finalize())});
        if lfs {
            let sha256 = hex(&sha2::Sha256::digest(&content));
            listed["lfs"] = json!({"sha256": sha256, "size": content.len(), "pointerSize": 130});
        }
        self.contents.files.lock().unwrap().insert(name.to_owned(), Stored { content, listed });
    }

    /// Sends something else than it lists.
    pub fn replace_content(&self, name: &str, content: Vec<u8>) {
        self.contents.files.lock().unwrap().get_mut(name).unwrap().content = content;
    }

    /// The next request whose path holds `path` goes wrong.
    pub fn fault(&self, path: &str, fault: Fault) {
        self.contents.faults.lock().unwrap().push((path.to_owned(), fault));
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.contents.requests.lock().unwrap().clone()
    }
}

async fn answer(State(contents): State<Arc<Contents>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    contents.requests.lock().unwrap().push(Seen { path: path.clone(), headers: headers.clone() });
    let fault = {
        let mut faults = contents.faults.lock().unwrap();
        let at = faults.iter().position(|(wanted, _)| path.contains(wanted));
        at.map(|at| faults.remove(at).1)
    };
    match fault {
        Some(Fault::Status(status, retry_after)) => {
            let mut response = StatusCode::from_u16(status).unwrap().into_response();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.parse().unwrap());
            }
            response
        }
        Some(Fault::Body(body)) => body.into_response(),
        Some(Fault::RedirectTo(server)) => {
            (StatusCode::FOUND, [(header::LOCATION, format!("{server}{path}"))]).into_response()
        }
        Some(Fault::Slow) => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            regular(&contents, &path, &headers)
        }
        Some(fault) => bent(regular(&contents, &path, &headers), fault).await,
        None => regular(&contents, &path, &headers),
    }
}

fn regular(contents: &Contents, path: &str, headers: &HeaderMap) -> Response {
    let files = contents.files.lock().unwrap();
    if path.starts_with("/api/models/org/name/revision/") {
        let siblings: Vec<_> = files.values().map(|file| file.listed.clone()).collect();
        let sha = "0123456789abcdef0123456789abcdef01234567";
        return axum::Json(json!({"id": "org/name", "sha": sha, "siblings": siblings, "tags": []})).into_response();
    }
    let name = path.strip_prefix("/org/name/resolve/0123456789abcdef0123456789abcdef01234567/");
    let Some(file) = name.and_then(|name| files.get(name)) else { return StatusCode::NOT_FOUND.into_response() };
    let etag = [(header::ETAG, "\"v1\"")];
    let is_same = headers.get(header::IF_RANGE).is_none_or(|etag| etag == "\"v1\"");
    let start = headers.get(header::RANGE).filter(|_| is_same).map(|range| {
        range.to_str().unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
    });
    match start {
        None => (etag, file.content.clone()).into_response(),
        Some(start) if start >= file.content.len() => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some(start) => {
            let length = file.content.len();
            let range = [(header::CONTENT_RANGE, format!("bytes {start}-{}/{length}", length - 1))];
            (StatusCode::PARTIAL_CONTENT, etag, range, file.content[start..].to_vec()).into_response()
        }
    }
}

async fn bent(response: Response, fault: Fault) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let first = |count: usize| {
        let bytes = bytes.slice(..count);
        stream::once(async move { Ok(bytes) })
    };
    let body = match fault {
        Fault::BreakAfter(count) => {
            // Late enough for the bytes before it to arrive.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(io::Error::other("broken"))
            });
            Body::from_stream(first(count).chain(end))
        }
        Fault::StallAfter(count) => Body::from_stream(first(count).chain(stream::pending::<io::Result<_>>())),
        _ => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::from_stream(stream::once(async move { io::Result::Ok(bytes) }))
        }
    };
    Response::from_parts(parts, body)
}
