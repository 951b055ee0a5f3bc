//! `GET /v1/models` and `GET /v1/models/{id}`.

use super::App;
use crate::{error::ApiError, models::Entry};
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// The models and their adapters, loaded or not.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let entries = app.models.entries()?;
    let data: Vec<Value> =
        entries.iter().flat_map(|entry| entry.ids().map(|id| description(entry, id)).collect::<Vec<_>>()).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// One of them.
pub(super) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let (entry, _) = app.models.find(&id)?;
    Ok(Json(description(entry, &id)))
}

/// `parent` is what an adapter changes, as vLLM has it.
fn description(entry: &Entry, id: &str) -> Value {
    let status = entry.status();
    json!({
        "id": id,
        "object": "model",
        "created": status.about.modified,
        "owned_by": "edgelm",
        "parent": (id != entry.id).then_some(&entry.id),
        "context_length": status.about.context,
        "size": status.about.description.size_bytes,
        "state": status.phase,
    })
}

/// For the dashboard. What is not known is null.
pub(super) fn summary(entry: &Entry) -> Value {
    let status = entry.status();
    let about = &status.about.description;
    json!({
        "id": entry.id,
        "state": status.phase,
        "artifact": status.artifact_name,
        "architecture": about.architecture,
        "format": about.format,
        "parameters": about.parameters,
        "file_bytes": about.size_bytes,
        "memory_bytes": status.is_loaded.then_some(status.total_bytes),
        "context": status.about.context,
        "error": status.load_error,
    })
}
