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

pub use check::check_request;
pub(crate) use parameters::{Parameters, Wanted};

use crate::{
    ServerConfig,
    access::{self, Guard, Scope},
    error::ApiError,
    metrics::{Metrics, RequestLabels, seconds},
    service::Service,
};
use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{Method, Uri, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use serde_json::Value;
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// What every handler sees.
pub(crate) struct App {
    service: OnceLock<Service>,
    metrics: Arc<Metrics>,
    body_limit_bytes: usize,
    body_timeout: Duration,
}

impl App {
    pub(crate) fn new(config: &ServerConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            service: OnceLock::new(),
            metrics,
            body_limit_bytes: config.body_limit_bytes,
            body_timeout: config.body_timeout,
        }
    }

    /// The model is there. Only the first call counts.
    pub(crate) fn start(&self, service: Service) {
        self.service.get_or_init(|| service);
    }

    pub(crate) fn stop(&self) {
        if let Some(service) = self.service.get() {
            service.stop();
        }
    }

    fn service(&self) -> Result<&Service, ApiError> {
        self.service.get().ok_or(ApiError::Loading)
    }
}

/// All routes, and those of gRPC alone. Keys guard everything but `/` and health.
pub(crate) fn routers(app: &Arc<App>, config: &ServerConfig) -> (Router, Router) {
    let guard = Guard::new(config.api_keys.clone(), config.rates);
    let of_scope = |scope| middleware::from_fn_with_state((guard.clone(), scope), access::require);
    let key = || of_scope(Scope::Use);
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
    let admin = Router::new().route("/metrics", get(operations::metrics)).route_layer(of_scope(Scope::Admin));
    let origins: Arc<[_]> = config.cors_origins.clone().into();
    let all = Router::new()
        .route("/", get(operations::page))
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
            .layer(middleware::from_fn_with_state(Arc::clone(&origins), access::refuse_cross_origin))
            .layer(middleware::from_fn_with_state(Arc::clone(app), observe))
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

/// Counts and logs every answer: when its headers are ready, so a stream counts as what it began with. Bodies are
/// never logged.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known_method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(method, route, status, elapsed_s = seconds(started.elapsed()), "answered");
    app.metrics.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    response
}

/// Clients may invent methods; labels must not grow with them.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}
