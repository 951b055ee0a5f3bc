//! `GET /v1/models` and `GET /v1/models/{id}`.

use super::App;
use crate::{error::ApiError, service::Service};
use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// The one model, as a list.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": [description(app.service()?)]})))
}

/// The one model, if that is its id.
pub(super) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    service.check_model(&id)?;
    Ok(Json(description(service)))
}

fn description(service: &Service) -> Value {
    json!({
        "id": service.backend.name(),
        "object": "model",
        "created": service.created,
        "owned_by": "edgelm",
        "context_length": service.backend.context(),
    })
}
