//! `GET /v1/models` and `GET /v1/models/{id}`.

use super::App;
use crate::{error::ApiError, service::Service};
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// The model and its adapters.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let adapters = service.backend.adapters().iter().map(|(id, _)| id.as_str());
    let data: Vec<Value> =
        [service.backend.name()].into_iter().chain(adapters).map(|id| description(service, id)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// One of them.
pub(super) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let _ = service.target(&id)?;
    Ok(Json(description(service, &id)))
}

/// `parent` is what an adapter changes, as vLLM has it.
fn description(service: &Service, id: &str) -> Value {
    let base = service.backend.name();
    json!({
        "id": id,
        "object": "model",
        "created": service.created,
        "owned_by": "edgelm",
        "parent": (id != base).then_some(base),
        "context_length": service.backend.context(),
    })
}
