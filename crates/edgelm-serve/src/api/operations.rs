//! What operators look at: `/`, `/health`, `/metrics`.

use super::App;
use crate::{breaker::Circuit, error::ApiError, metrics};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::Arc;

/// `GET /`: what this is. Ollama's clients ask for a sentence; browsers, which accept HTML, get a list.
pub(super) async fn page(headers: HeaderMap) -> &'static str {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") { PAGE } else { "Ollama is running" }
}

const PAGE: &str = concat!(
    "EdgeLM ",
    env!("CARGO_PKG_VERSION"),
    "\n\n",
    "GET  /health               200 when the model is ready, 503 while it loads or hangs\n",
    "GET  /metrics              Prometheus metrics\n",
    "GET  /v1/models            the model served here\n",
    "POST /v1/chat/completions  OpenAI; also /v1/completions, /v1/responses, /v1/embeddings\n",
    "POST /v1/messages          Anthropic; also /v1/messages/count_tokens\n",
    "POST /api/chat             Ollama; also /api/generate, /api/embed, /api/tags, /api/show, /api/ps\n",
    "POST /generate             a prompt in, a text out; also /tokenize, /detokenize\n",
);

/// `GET /health`: whether requests can be answered. 503 while the main model loads, and while an engine hangs; `degraded`
/// where a model could not be loaded, or only from a lesser artifact.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut models = Vec::new();
    let mut is_degraded = false;
    for entry in app.models.entries()? {
        let status = entry.status();
        status.alive?;
        let is_lesser = status.is_loaded && status.artifact > 0;
        is_degraded |= is_lesser || status.load_error.is_some() || status.circuit != Circuit::Closed;
        let mut model = json!({"id": entry.id, "state": status.phase, "artifact": status.artifact_name,
            "circuit": status.circuit.name()});
        if is_lesser {
            model["fallback"] = true.into();
        }
        if let Some(error) = status.load_error {
            model["error"] = error.into();
        }
        models.push(model);
    }
    Ok(Json(json!({"status": if is_degraded { "degraded" } else { "ok" }, "models": models})).into_response())
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.render().map_err(|_| ApiError::Internal)?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
