//! Who may ask: API keys, and no web pages of other origins.

use crate::{ServeError, caller::Client, error::ApiError};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{fmt, fs, hint::black_box, path::Path, sync::Arc};

/// Keys, any of which opens the API. Never printed.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<[String]>);

impl ApiKeys {
    /// Reads one key per line; empty lines and lines that start with `#` are skipped.
    ///
    /// # Errors
    /// A file that cannot be read, holds no key (an empty file must not mean "open"), or holds a key that no HTTP
    /// header can carry.
    pub fn from_file(path: &Path) -> Result<Self, ServeError> {
        let text = fs::read_to_string(path).map_err(|source| ServeError::KeyFile { path: path.to_owned(), source })?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let key = line.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let what = format!("line {} is not one word of printable ASCII", index + 1);
                return Err(ServeError::Keys { path: path.to_owned(), what });
            }
            keys.push(key.to_owned());
        }
        if keys.is_empty() {
            return Err(ServeError::Keys { path: path.to_owned(), what: "holds no key".to_owned() });
        }
        Ok(Self(keys.into()))
    }

    /// Which of the keys `candidate` is. Takes the same time whichever key or byte differs; only lengths show.
    fn find(&self, candidate: &[u8]) -> Option<usize> {
        self.0.iter().enumerate().fold(None, |found, (index, key)| {
            let key = key.as_bytes();
            let same_length = key.len() == candidate.len();
            let difference = key.iter().zip(candidate).fold(0u8, |seen, (a, b)| black_box(seen | (a ^ b)));
            if same_length & (black_box(difference) == 0) { Some(index) } else { found }
        })
    }
}

impl<S: Into<String>> FromIterator<S> for ApiKeys {
    fn from_iter<I: IntoIterator<Item = S>>(keys: I) -> Self {
        Self(keys.into_iter().map(Into::into).collect())
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({} keys)", self.0.len())
    }
}

/// Refuses requests without a key, where keys are configured. Leaves word of whose key it was.
pub(crate) async fn require_key(State(keys): State<ApiKeys>, mut request: Request, next: Next) -> Response {
    if keys.0.is_empty() {
        return next.run(request).await;
    }
    match bearer(request.headers()).and_then(|key| keys.find(key)) {
        Some(index) => {
            request.extensions_mut().insert(Client::Key(index));
            next.run(request).await
        }
        None => ApiError::InvalidApiKey.into_response(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    // How Anthropic's clients send it.
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// Refuses what a browser sends for a page of another origin. Such pages could not read the answers (no CORS headers
/// are sent), but they could keep a model on this machine busy.
pub(crate) async fn refuse_cross_origin(request: Request, next: Next) -> Response {
    if is_cross_origin(request.headers()) { ApiError::CrossOrigin.into_response() } else { next.run(request).await }
}

fn is_cross_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let origin_host =
        origin.as_bytes().splitn(2, |&byte| byte == b':').nth(1).and_then(|rest| rest.strip_prefix(b"//"));
    origin_host.is_none() || origin_host != host
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn keys_match_whole() {
        let keys: ApiKeys = ["alpha-1", "beta"].into_iter().collect();
        assert_eq!((keys.find(b"alpha-1"), keys.find(b"beta")), (Some(0), Some(1)));
        for wrong in [&b""[..], b"alpha-", b"alpha-11", b"Beta", b"bet\0"] {
            assert_eq!(keys.find(wrong), None);
        }
        assert_eq!(format!("{keys:?}"), "ApiKeys(2 keys)");
    }

    #[test]
    fn key_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        fs::write(&path, "# ours\n\n  one \ntwo\n").expect("written");
        let keys = ApiKeys::from_file(&path).expect("two keys");
        assert_eq!((keys.find(b"one"), keys.find(b"two"), keys.find(b"# ours")), (Some(0), Some(1), None));
        fs::write(&path, "# nobody\n").expect("written");
        assert!(matches!(ApiKeys::from_file(&path), Err(ServeError::Keys { .. })));
        fs::write(&path, "secret word\n").expect("written");
        let message = ApiKeys::from_file(&path).expect_err("a space").to_string();
        assert!(message.contains("line 1") && !message.contains("secret"));
        assert!(matches!(ApiKeys::from_file(&folder.path().join("none")), Err(ServeError::KeyFile { .. })));
    }

    #[test]
    fn bearer_scheme_ignores_case() {
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "bearer  k")])), Some(&b"k"[..]));
        assert_eq!(bearer(&headers(&[(header::HeaderName::from_static("x-api-key"), "k")])), Some(&b"k"[..]));
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Basic k")])), None);
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Bear")])), None);
    }

    #[test]
    fn origins() {
        let host = (header::HOST, "127.0.0.1:8080");
        assert!(!is_cross_origin(&headers(std::slice::from_ref(&host))));
        assert!(!is_cross_origin(&headers(&[host.clone(), (header::ORIGIN, "http://127.0.0.1:8080")])));
        assert!(is_cross_origin(&headers(&[host.clone(), (header::ORIGIN, "https://example.org")])));
        assert!(is_cross_origin(&headers(&[host, (header::ORIGIN, "null")])));
    }
}
