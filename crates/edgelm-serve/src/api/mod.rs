//! The routes: one file per endpoint, and what the endpoints share.

mod chat;
mod completions;
mod fields;
mod models;
mod operations;
mod parameters;
mod reply;

pub(crate) use parameters::Parameters;
pub(crate) use reply::{Envelope, Reply, Usage};

use crate::{
    ServerConfig, access,
    error::ApiError,
    metrics::{Metrics, RequestLabels, seconds},
    service::Service,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{Method, Uri},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
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

/// All routes. Keys guard everything but `/` and `/health`.
pub(crate) fn router(app: &Arc<App>, config: &ServerConfig) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        // A wildcard, because model ids may hold slashes.
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/metrics", get(operations::metrics))
        .route_layer(middleware::from_fn_with_state(config.api_keys.clone(), access::require_key));
    Router::new()
        .route("/", get(operations::page))
        .route("/health", get(operations::health))
        .merge(guarded)
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(config.body_limit_bytes))
        .layer(middleware::from_fn(access::refuse_cross_origin))
        .layer(middleware::from_fn_with_state(Arc::clone(app), observe))
        .with_state(Arc::clone(app))
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
