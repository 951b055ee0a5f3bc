//! Web pages of other origins: refused, or, where an operator names them, told that they may.

use crate::error::ApiError;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{str::FromStr, sync::Arc};

/// An origin whose pages may use the API: `https://chat.example.org`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither `*` nor an origin like `https://chat.example.org`");
        let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
            let is_host = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@' | b',');
            !scheme.is_empty() && scheme.bytes().all(is_word) && !host.is_empty() && host.bytes().all(is_host)
        });
        if text != "*" && !is_origin {
            return Err(wrong());
        }
        // Browsers send it in lower case.
        HeaderValue::from_str(&text.to_ascii_lowercase()).map(Self).map_err(|_| wrong())
    }
}

/// A day: how long a browser may remember that it was allowed.
const MAX_AGE_S: &str = "86400";
const METHODS: &str = "GET, POST, OPTIONS";

/// Refuses what a browser sends for a page of another origin, unless that is among `allowed`. Such pages could not read the
/// answers, as they get no CORS headers, but they could keep a model on this machine busy.
pub(crate) async fn refuse_cross_origin(
    State(allowed): State<Arc<[Origin]>>,
    request: Request,
    next: Next,
) -> Response {
    if !is_cross_origin(request.headers()) {
        return next.run(request).await;
    }
    let Some(granted) = granted(&allowed, request.headers()) else {
        return ApiError::CrossOrigin.into_response();
    };
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let is_question =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_question { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, granted);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if is_question {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
    } else {
        let exposed = HeaderValue::from_static(
            "retry-after, x-request-id, x-edgelm-trace, x-ratelimit-limit-requests, \
            x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
            x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
        );
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

/// What to answer an origin that is allowed.
fn granted(allowed: &[Origin], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let origin_lower = origin.as_bytes().to_ascii_lowercase();
    let matching = allowed.iter().find(|one| one.0 == "*" || one.0.as_bytes() == origin_lower)?;
    Some(if matching.0 == "*" { matching.0.clone() } else { origin.clone() })
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

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn origins() {
        let host = (header::HOST, "127.0.0.1:8080");
        assert!(!is_cross_origin(&headers(std::slice::from_ref(&host))));
        assert!(!is_cross_origin(&headers(&[host.clone(), (header::ORIGIN, "http://127.0.0.1:8080")])));
        assert!(is_cross_origin(&headers(&[host.clone(), (header::ORIGIN, "https://example.org")])));
        assert!(is_cross_origin(&headers(&[host, (header::ORIGIN, "null")])));
    }

    #[test]
    fn origins_that_are_allowed() {
        let one: Vec<Origin> = vec!["https://Chat.example.org".parse().expect("an origin")];
        let from = |origin| granted(&one, &headers(&[(header::ORIGIN, origin)]));
        assert_eq!(from("https://chat.example.org"), Some(HeaderValue::from_static("https://chat.example.org")));
        for other in ["http://chat.example.org", "https://chat.example.org.evil.com", "null"] {
            assert_eq!(from(other), None);
        }
        for wrong in ["", "chat.example.org", "https://", "https://a/b", "https://a,https://b", "null"] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }
}
