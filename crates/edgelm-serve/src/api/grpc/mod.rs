//! gRPC, as another way of writing the HTTP API's requests and answers.
//!
//! A message becomes the JSON that the HTTP API reads, and is checked and run by the same code: what is refused there is
//! refused here, by the same name and with the same code. Calls share the port of HTTP and come in by the same door.

mod answer;
mod calls;
mod health;
mod request;
mod status;

use super::App;
use crate::{
    access::{Guard, Scope},
    error::ApiError,
    proto::{DESCRIPTORS, v1::edge_lm_server::EdgeLmServer},
};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use calls::Calls;
use health::Health;
use status::status;
use std::sync::Arc;
use tonic::server::NamedService;
use tonic_health::pb::{FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTORS, health_server::HealthServer};

/// What frames a message on its way.
const FRAME_BYTES: usize = 5;

/// The services. Keys guard all but health.
pub(super) fn router(app: &Arc<App>, guard: &Guard) -> Router<Arc<App>> {
    let calls = EdgeLmServer::new(Calls(Arc::clone(app))).max_decoding_message_size(app.body_limit_bytes);
    let key = || middleware::from_fn_with_state(guard.clone(), admit);
    let work = Router::new()
        .route_service(&path_of(&calls), calls)
        .layer(middleware::from_fn_with_state(Arc::clone(app), whole_body))
        .layer(key());
    let mut open = Router::new();
    let mut guarded = Router::new();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(HEALTH_DESCRIPTORS)
    };
    // Neither can fail: both sets are part of this program, and a test asks for them.
    if let Ok(service) = reflection().build_v1() {
        guarded = guarded.route_service(&path_of(&service), service);
    }
    if let Ok(service) = reflection().build_v1alpha() {
        guarded = guarded.route_service(&path_of(&service), service);
    }
    let health = HealthServer::new(Health(Arc::clone(app)));
    open = open.route_service(&path_of(&health), health);
    Router::new().merge(work).merge(guarded.layer(key())).merge(open)
}

fn path_of<S: NamedService>(_: &S) -> String {
    format!("/{}/{{*method}}", S::NAME)
}

/// Keys and rates, as in front of HTTP.
async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path();
    let is_work = !path.starts_with("/grpc.") && !path.ends_with("/ListModels");
    match guard.admit(Scope::Use, is_work, &parts.headers, &mut parts.extensions) {
        Ok(meter) => {
            let mut response = next.run(Request::from_parts(parts, body)).await;
            if let Some(meter) = meter {
                meter.show(response.headers_mut());
            }
            response
        }
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &ApiError) -> Response {
    status(error).into_http()
}

/// Reads the one message of a call, within the server's limits of size and time.
async fn whole_body(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let limit_bytes = app.body_limit_bytes;
    let read = to_bytes(body, limit_bytes.saturating_add(FRAME_BYTES));
    match tokio::time::timeout(app.body_timeout, read).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(_)) => refusal(&ApiError::BodyTooLarge { limit_bytes }),
        Err(_) => refusal(&ApiError::BodyTimeout),
    }
}
