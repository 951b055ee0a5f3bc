//! Errors: what a client is told, and what stops the server.
//!
//! A client always gets OpenAI's shape `{"error": {"message", "type", "param", "code"}}`; `code` is the stable,
//! machine-readable kind and is never null. Messages about our own faults stay general: the details are logged.

use crate::{audit::AuditError, telemetry::ForwardError};
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use edgelm_engine::EngineError;
use edgelm_model::ModelError;
use serde_json::{Value, json};
use std::{io, path::PathBuf};

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on `{address}`")]
    Bind {
        /// Host and port as configured.
        address: String,
        /// The system's word.
        source: io::Error,
    },
    /// Others than this machine's users could reach the address, and nothing would ask who they are.
    #[error("`{address}` can be reached from other machines, and anyone could use it")]
    Exposed {
        /// Host and port as configured.
        address: String,
    },
    /// Certificates that make no working server.
    #[error("`{path}`: {what}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong; never quotes a key.
        what: String,
    },
    /// The key file cannot be read.
    #[error("cannot read the API key file `{path}`")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The key file holds something that is not a key.
    #[error("API key file `{path}`: {what}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong; never quotes a key.
        what: String,
    },
    /// The name of a new key cannot stand in a key file.
    #[error("{0}")]
    KeyName(String),
    /// The system has no random numbers to make a key of.
    #[error("the system gives no random numbers")]
    Random,
    /// The engine thread could not be started.
    #[error("cannot start the engine thread")]
    Thread(#[source] io::Error),
    /// Traces cannot be sent there.
    #[error("traces cannot be sent to `{endpoint}`: {what}")]
    Traces {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing can wait on the disk for the collector.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The audit log cannot be kept.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The model could not be loaded.
    #[error("the model cannot be loaded")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why one request fails.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    MalformedBody(String),
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("`{param}` is required")]
    MissingParameter { param: String },
    #[error("`{param}`: {what}")]
    InvalidValue { param: String, what: String },
    #[error("`{param}` is not supported by this server{}", .why.as_deref().map(|w| format!(": {w}")).unwrap_or_default())]
    UnsupportedParameter { param: String, why: Option<String> },
    #[error("`{param}` is not a known parameter")]
    UnknownParameter { param: String },
    #[error("the model `{model}` does not exist; this server has `{available}`")]
    ModelNotFound { model: String, available: String },
    #[error(
        "the context holds {context} tokens, but {} were asked for ({prompt} in the prompt, {max_new} to generate)",
        .prompt.saturating_add(*.max_new)
    )]
    ContextLength { param: &'static str, prompt: usize, max_new: usize, context: usize },
    #[error(
        "`{param}`: {tokens} tokens need more than the KV budget of {budget_bytes} bytes, which holds {capacity} tokens"
    )]
    KvBudget { param: &'static str, tokens: usize, budget_bytes: usize, capacity: usize },
    #[error("the request was not done in the time that it, or this server, allows")]
    DeadlineExceeded,
    #[error("the engine hangs")]
    Stalled,
    #[error("the model `{model}` cannot be had now")]
    ModelUnavailable { model: String, retry_after_s: u64 },
    #[error("there is no trace of a request `{id}`: send `x-edgelm-trace: 1` with it, and fetch it soon")]
    TraceNotFound { id: String },
    #[error("no route for {method} {path}")]
    UnknownUrl { method: String, path: String },
    #[error("{method} is not allowed on {path}")]
    MethodNotAllowed { method: String, path: String },
    #[error("a valid API key is required: send `Authorization: Bearer <key>`")]
    InvalidApiKey,
    #[error("this needs a key of scope `{wanted}`")]
    Scope { wanted: &'static str },
    #[error("requests from web pages of another origin are refused")]
    CrossOrigin,
    #[error("the queue of {capacity} waiting requests is full")]
    QueueFull { capacity: usize, retry_after_s: u64 },
    #[error("more than {limit} {what} in a minute; come again in {retry_after_s} s")]
    RateLimited { what: &'static str, limit: u32, retry_after_s: u64 },
    #[error("the model is still loading")]
    Loading,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the model `{model}` is not what it was: {fault}")]
    Unhealthy { model: String, fault: String },
    #[error("the audit log cannot be written, and this server answers nothing that it cannot record")]
    AuditUnavailable,
    #[error("the request failed inside the server")]
    Internal,
}

impl ApiError {
    pub(crate) fn invalid(param: impl Into<String>, what: impl Into<String>) -> Self {
        Self::InvalidValue { param: param.into(), what: what.into() }
    }

    /// What the engine refused. `param` is the field that holds the prompt.
    pub(crate) fn from_engine(error: &EngineError, param: &'static str) -> Self {
        match error {
            EngineError::ContextLength { prompt, max_new, context } => {
                Self::ContextLength { param, prompt: *prompt, max_new: *max_new, context: *context }
            }
            EngineError::KvBudget { tokens, budget_bytes, capacity } => {
                Self::KvBudget { param, tokens: *tokens, budget_bytes: *budget_bytes, capacity: *capacity }
            }
            EngineError::TokenId { .. } | EngineError::EmptyPrompt => Self::invalid(param, error.to_string()),
            // Half way: a step of the grammar took more work than it may.
            EngineError::Constraint(what) => Self::invalid("response_format", what.clone()),
            EngineError::Option { option, what } => Self::invalid(*option, what.clone()),
            // A template refuses messages it cannot express, for example two user messages in a row.
            EngineError::NoChatTemplate | EngineError::Model(ModelError::Template(_)) => {
                Self::invalid(param, error.to_string())
            }
            _ => {
                tracing::error!(error = error as &dyn std::error::Error, "generation failed");
                Self::Internal
            }
        }
    }

    /// Why a constraint cannot be enforced. `param` is the field that asks for it.
    pub(crate) fn from_constraint(error: &EngineError, param: &str) -> Self {
        match error {
            EngineError::Constraint(what) => Self::invalid(param, what.clone()),
            EngineError::Model(_) => {
                Self::UnsupportedParameter { param: param.to_owned(), why: Some(error.to_string()) }
            }
            _ => Self::from_engine(error, "prompt"),
        }
    }

    /// HTTP's.
    pub(crate) fn status(&self) -> StatusCode {
        self.parts().0
    }

    /// The stable, machine-readable kind.
    pub(crate) fn code(&self) -> &'static str {
        self.parts().2
    }

    /// When it may work again, where that is known.
    pub(crate) fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_s, .. }
            | Self::RateLimited { retry_after_s, .. }
            | Self::ModelUnavailable { retry_after_s, .. } => Some(*retry_after_s),
            Self::Loading | Self::AuditUnavailable => Some(1),
            _ => None,
        }
    }

    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::MalformedBody(_) => (StatusCode::BAD_REQUEST, REQUEST, "malformed_body"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "body_too_large"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, REQUEST, "body_timeout"),
            Self::MissingParameter { .. } => (StatusCode::BAD_REQUEST, REQUEST, "missing_required_parameter"),
            Self::InvalidValue { .. } => (StatusCode::BAD_REQUEST, REQUEST, "invalid_value"),
            Self::UnsupportedParameter { .. } => (StatusCode::BAD_REQUEST, REQUEST, "unsupported_parameter"),
            Self::UnknownParameter { .. } => (StatusCode::BAD_REQUEST, REQUEST, "unknown_parameter"),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, "model_not_found"),
            Self::ContextLength { .. } => (StatusCode::BAD_REQUEST, REQUEST, "context_length_exceeded"),
            Self::KvBudget { .. } => (StatusCode::BAD_REQUEST, REQUEST, "kv_budget_exceeded"),
            Self::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, SERVER, "deadline_exceeded"),
            Self::Stalled => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "stalled"),
            Self::ModelUnavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "model_unavailable"),
            Self::TraceNotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, "trace_not_found"),
            Self::UnknownUrl { .. } => (StatusCode::NOT_FOUND, REQUEST, "unknown_url"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            Self::InvalidApiKey => (StatusCode::UNAUTHORIZED, REQUEST, "invalid_api_key"),
            Self::Scope { .. } => (StatusCode::FORBIDDEN, REQUEST, "insufficient_scope"),
            Self::CrossOrigin => (StatusCode::FORBIDDEN, REQUEST, "cross_origin"),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full"),
            Self::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded"),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "loading"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "shutting_down"),
            Self::Unhealthy { .. } => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "unhealthy"),
            Self::AuditUnavailable => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "audit_unavailable"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
        }
    }

    /// The field at fault.
    pub(crate) fn param(&self) -> Option<&str> {
        match self {
            Self::MissingParameter { param }
            | Self::InvalidValue { param, .. }
            | Self::UnsupportedParameter { param, .. }
            | Self::UnknownParameter { param } => Some(param),
            Self::ModelNotFound { .. } | Self::ModelUnavailable { .. } => Some("model"),
            Self::ContextLength { param, .. } | Self::KvBudget { param, .. } => Some(param),
            _ => None,
        }
    }

    /// The body in Ollama's shape: a text.
    pub(crate) fn ollama_body(&self) -> Value {
        json!({"error": self.to_string()})
    }

    /// The body in Anthropic's shape, whose kinds follow the status.
    pub(crate) fn anthropic_body(&self) -> Value {
        let kind = match self.parts().0 {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.to_string()}})
    }

    /// The answer's body, also sent as an event when a stream fails half-way.
    pub(crate) fn body(&self) -> Value {
        let (_, kind, code) = self.parts();
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.parts().0, Json(self.body())).into_response();
        // For the APIs that write errors in another shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::InvalidApiKey = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
