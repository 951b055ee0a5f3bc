//! Follows every request: from its headers to the last byte of its answer, however that comes about.

use super::{Journey, TRACE, Telemetry, timeline, traces};
use crate::{
    error::ApiError,
    metrics::{Metrics, RequestLabels},
};
use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Names a request in its answer, in logs and in records. A client may give its own.
const REQUEST_ID: &str = "x-request-id";
/// Longer ones, and such with other characters, are not taken over.
const MAX_ID_CHARS: usize = 128;

/// Begins a request's journey, counts its answer when that begins, and ends the journey with the answer's body. Bodies are never
/// logged.
pub(crate) async fn observe(
    State((telemetry, metrics)): State<(Arc<Telemetry>, Arc<Metrics>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = known_method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let parent = request.headers().get("traceparent").and_then(|value| traces::parent(value.to_str().ok()?));
    let id = request_id(request.headers());
    let journey = Journey::begin(telemetry, id, method, route.clone(), address, parent);
    request.extensions_mut().insert(Arc::clone(&journey));
    let id = HeaderValue::from_str(&journey.id);
    // From here on: also where the client goes away before there is an answer.
    let mut guard = Guard { journey, status: None, is_whole: false };

    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    metrics.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    if let Ok(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if guard.journey.timeline().is_some()
        && let Ok(url) = HeaderValue::from_str(&timeline::url(&guard.journey.id))
    {
        response.headers_mut().insert(TRACE, url);
    }
    guard.status = Some(status);
    if let Some(error) = response.extensions().get::<ApiError>() {
        guard.journey.failed(error);
    }
    guard.is_whole = HttpBody::is_end_stream(response.body());
    response.map(|body| Body::new(Watched { body, guard }))
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_fit = (1..=MAX_ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_fit.then(|| id.to_owned())
}

/// Clients may invent methods; labels must not grow with them.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// Ends a journey when it is dropped.
struct Guard {
    journey: Arc<Journey>,
    status: Option<u16>,
    is_whole: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.journey.end(self.status, self.is_whole);
    }
}

/// A body that knows when it is over. The body is dropped first: that cancels what still runs.
struct Watched {
    body: Body,
    guard: Guard,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.guard.is_whole = true;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients() {
        let id = |value: &str| {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            request_id(&HeaderMap::from_iter([(axum::http::HeaderName::from_static(REQUEST_ID), value)]))
        };
        assert_eq!(id("abc-1"), Some("abc-1".to_owned()));
        for bad in ["", "a b", "a\tb", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
