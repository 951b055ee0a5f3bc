//! gRPC, as another way of writing the HTTP API's requests and answers.
//!
//! A message becomes the JSON that the HTTP API reads, and is checked and run by the same code: what is refused there is
//! refused here, by the same name and with the same code. Calls share the port of HTTP and come in by the same door.

mod answer;
mod calls;
mod health;
mod request;
mod status;

use super::{App, Fields};
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
use prost::Message;
use status::status;
use std::sync::Arc;
use tonic::server::NamedService;
use tonic_health::pb::{FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTORS, health_server::HealthServer};

/// The path in HTTP that a method stands for, and the fields of a message as that path reads them.
///
/// # Errors
/// A method that does not exist or takes nothing, or bytes that are no message of it.
pub(super) fn fields(method: &str, message: &[u8]) -> Result<(&'static str, Fields), ApiError> {
    fn decoded<T: Message + Default>(message: &[u8]) -> Result<T, ApiError> {
        T::decode(message).map_err(|error| ApiError::MalformedBody(error.to_string()))
    }
    Ok(match method {
        "Generate" | "GenerateStream" => ("/generate", request::generate(decoded(message)?, None)?),
        "Chat" | "ChatStream" => ("/v1/chat/completions", request::chat(decoded(message)?, None)?),
        "Embed" => ("/v1/embeddings", request::embed(decoded(message)?)?),
        "Tokenize" => ("/tokenize", request::tokenize(decoded(message)?)?),
        "Detokenize" => ("/detokenize", request::detokenize(decoded(message)?)?),
        _ => return Err(ApiError::UnknownUrl { method: "POST".to_owned(), path: method.to_owned() }),
    })
}

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
        Ok(admitted) => {
            let served = admitted.serve(Request::from_parts(parts, body), next).await;
            served.unwrap_or_else(|error| refusal(&error))
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
