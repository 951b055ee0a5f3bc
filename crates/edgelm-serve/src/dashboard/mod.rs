//! The page at `/`: a chat with the model and a view of the server, from files compiled into the binary.
//!
//! Nothing is loaded from elsewhere, and the policy of the page forbids it. The files are open to everyone who reaches the port;
//! what they show comes from `/metrics` and `/dashboard/state`, which have the same rule of access, and from the API.

use crate::{api::App, error::ApiError};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::Arc;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Scripts and styles are files of their own, so that none has to be allowed inside the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // It changes with the version alone, but its address does not.
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    (headers, text).into_response()
}

/// `GET /`: the page for browsers, which accept HTML; Ollama's clients ask for a sentence.
pub(crate) async fn root(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = if accept.contains("text/html") { page().await } else { "Ollama is running".into_response() };
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("accept"));
    response
}

/// `GET /dashboard`.
pub(crate) async fn page() -> Response {
    file("text/html; charset=utf-8", PAGE)
}

/// `GET /dashboard/style.css`.
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

/// `GET /dashboard/script.js`.
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}

/// `GET /dashboard/state`: what is not a number of `/metrics`: models, requests under way, and the last ones.
pub(crate) async fn state(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let (running, recent) = app.telemetry().live.look();
    let audit = app.telemetry().audit().map(|audit| json!({"failing": audit.is_failing()}));
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "models": app.about_models()?,
        "running": running,
        "recent": recent,
        "audit": audit,
    })))
}
