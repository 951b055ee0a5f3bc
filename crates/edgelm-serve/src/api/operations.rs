//! What operators look at: `/`, `/health`, `/metrics`.

use super::App;
use crate::{error::ApiError, metrics};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::Arc;

/// `GET /`: says what this is.
pub(super) async fn page() -> &'static str {
    concat!(
        "EdgeLM ",
        env!("CARGO_PKG_VERSION"),
        "\n\n",
        "GET  /health               200 when the model is ready, 503 while it loads or hangs\n",
        "GET  /metrics              Prometheus metrics\n",
        "GET  /v1/models            the model served here\n",
        "POST /v1/chat/completions  OpenAI chat API, with and without streaming\n",
        "POST /v1/completions       OpenAI completions API, with and without streaming\n",
    )
}

/// `GET /health`: whether requests can be answered. 503 while the model loads, and while the engine hangs.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.service()?.check_alive()?;
    Ok(Json(json!({"status": "ok"})).into_response())
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.render().map_err(|_| ApiError::Internal)?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
