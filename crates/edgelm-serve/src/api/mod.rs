//! The routes: one file per endpoint, and what the endpoints share.

mod anthropic;
mod chat;
mod check;
mod completions;
mod conversation;
mod embeddings;
mod fields;
mod format;
mod functions;
mod generate;
mod grpc;
mod models;
mod ollama;
mod openai;
mod openapi;
mod operations;
mod parameters;
mod responses;
mod tokens;
mod traces;

pub use check::{check_call, check_request};
pub(crate) use completions::Prompt;
pub(crate) use conversation::Conversation;
pub(crate) use parameters::{Parameters, Wanted};

use crate::{
    ServerConfig,
    access::{self, Guard, Scope},
    caller::Caller,
    dashboard,
    error::ApiError,
    metrics::Metrics,
    models::{Lease, Models},
    notes,
    telemetry::{self, Telemetry},
};
use axum::{
    Router,
    body::Body,
    extract::DefaultBodyLimit,
    http::{Method, Uri, header},
    middleware,
    response::Response,
    routing::{get, post},
};
use fields::Fields;
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// What every handler sees.
pub(crate) struct App {
    models: Arc<Models>,
    metrics: Arc<Metrics>,
    telemetry: Arc<Telemetry>,
    body_limit_bytes: usize,
    body_timeout: Duration,
}

impl App {
    pub(crate) fn new(
        config: &ServerConfig,
        models: Arc<Models>,
        metrics: Arc<Metrics>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            models,
            metrics,
            telemetry,
            body_limit_bytes: config.body_limit_bytes,
            body_timeout: config.body_timeout,
        }
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// What there is to know of each model, for people.
    pub(crate) fn about_models(&self) -> Result<Vec<Value>, ApiError> {
        Ok(self.models.entries()?.iter().map(|entry| models::summary(entry)).collect())
    }

    /// The model that a request names in `model` (without one, the main model), loaded if need be, until the request's
    /// `timeout`. Both fields stay, to be checked with the others.
    pub(crate) async fn lease(&self, fields: &Fields, caller: &Caller) -> Result<Lease, ApiError> {
        let id = fields.peek("model");
        self.lease_by(id.as_str(), fields, caller).await
    }

    /// The same where the model's id is another than the field says.
    async fn lease_by(&self, id: Option<&str>, fields: &Fields, caller: &Caller) -> Result<Lease, ApiError> {
        let time = fields.peek("timeout").as_f64().and_then(|time| Duration::try_from_secs_f64(time).ok());
        caller.journey.check()?;
        let lease = self.models.lease(id, time.and_then(|time| caller.received.checked_add(time))).await?;
        let digest = if self.telemetry.audit().is_some() { lease.digest().await } else { None };
        caller.journey.of_model(lease.id(), digest, lease.adapter_id.clone());
        Ok(lease)
    }
}

/// All routes, and those of gRPC alone. Keys guard everything but `/` and health.
pub(crate) fn routers(app: &Arc<App>, config: &ServerConfig) -> (Router, Router) {
    let guard = Guard::new(config.api_keys.clone(), config.rates);
    let of_scope = |scope| middleware::from_fn_with_state((guard.clone(), scope), access::require);
    let key = || of_scope(Scope::Use);
    let watched = (Arc::clone(&app.telemetry), Arc::clone(&app.metrics));
    let grpc = grpc::router(app, &guard);
    // These two write their errors in shapes of their own, also those of keys.
    let ollama = Router::new()
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route_layer(key())
        .route_layer(middleware::map_response(ollama_errors));
    let anthropic = Router::new()
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route_layer(key())
        .route_layer(middleware::map_response(anthropic_errors));
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        // A wildcard, because model ids may hold slashes.
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/responses", post(responses::create))
        .route("/generate", post(generate::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/openapi.json", get(openapi::document))
        .route_layer(key());
    // What shows what all clients do.
    let admin = Router::new()
        .route("/metrics", get(operations::metrics))
        .route("/dashboard/state", get(dashboard::state))
        .route("/v1/traces", get(traces::list))
        // A wildcard, because ids of clients may hold slashes.
        .route("/v1/traces/{*id}", get(traces::one))
        .route_layer(of_scope(Scope::Admin));
    let origins: Arc<[_]> = config.cors_origins.clone().into();
    let all = Router::new()
        .route("/", get(dashboard::root))
        .route("/dashboard", get(dashboard::page))
        .route("/dashboard/style.css", get(dashboard::style))
        .route("/dashboard/script.js", get(dashboard::script))
        .route("/health", get(operations::health))
        .merge(guarded)
        .merge(admin)
        .merge(ollama)
        .merge(anthropic)
        .merge(grpc.clone())
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(config.body_limit_bytes));
    let around = |router: Router<Arc<App>>| {
        router
            .layer(middleware::from_fn(notes::collect))
            .layer(middleware::from_fn_with_state(Arc::clone(&origins), access::refuse_cross_origin))
            .layer(middleware::from_fn_with_state(watched.clone(), telemetry::observe))
            .with_state(Arc::clone(app))
    };
    (around(all), around(grpc))
}

async fn ollama_errors(response: Response) -> Response {
    with_body(response, ApiError::ollama_body)
}

async fn anthropic_errors(response: Response) -> Response {
    with_body(response, ApiError::anthropic_body)
}

/// The same answer with the error's body in another shape.
fn with_body(response: Response, shape: fn(&ApiError) -> Value) -> Response {
    let Some(body) = response.extensions().get::<ApiError>().map(shape) else { return response };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(body.to_string()))
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::UnknownUrl { method: method.to_string(), path: uri.path().to_owned() }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string(), path: uri.path().to_owned() }
}
