//! `/v1/traces`: Chrome traces of requests that asked for one.

use super::App;
use crate::error::ApiError;
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v1/traces`: those that can be fetched, newest first.
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": app.telemetry.timelines.list()}))
}

/// `GET /v1/traces/{id}`.
pub(super) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    app.telemetry.timelines.get(&id).map(Json).ok_or(ApiError::TraceNotFound { id })
}
