//! What operators' programs look at: `/health`, `/metrics`.

use super::App;
use crate::{breaker::Circuit, error::ApiError, metrics};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::Arc;

/// `GET /health`: whether requests can be answered. 503 while the main model loads, and while an engine hangs; `degraded`
/// where a model could not be loaded, or only from a lesser artifact.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut models = Vec::new();
    let mut is_degraded = false;
    for entry in app.models.entries()? {
        let status = entry.status();
        status.alive?;
        let health = entry.health.state().clone();
        if let Some(fault) = health.fault() {
            return Err(ApiError::Unhealthy { model: entry.id.clone(), fault: fault.to_owned() });
        }
        let is_lesser = status.is_loaded && status.artifact > 0;
        is_degraded |= is_lesser || status.load_error.is_some() || health.is_replaced();
        is_degraded |= status.circuit != Circuit::Closed;
        let mut model = json!({"id": entry.id, "state": status.phase, "artifact": status.artifact_name,
            "circuit": status.circuit.name()});
        if status.is_loaded {
            model["health"] = health.about(status.artifact);
        }
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
