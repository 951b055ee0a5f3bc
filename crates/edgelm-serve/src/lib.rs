//! HTTP server with the APIs of OpenAI, Ollama and Anthropic, in front of one or several models.
//!
//! Separate because nothing below may know about HTTP, and because everything a client sends is untrusted: requests are
//! read strictly (a field is honoured or refused, never ignored), checked against the model, admitted into a bounded
//! queue, and only then generated, several at a time, on one engine thread. Must not depend on kernels or read model files:
//! it knows a [`Backend`].

mod access;
mod admission;
mod answer;
mod api;
pub mod audit;
mod backend;
mod breaker;
mod caller;
mod dashboard;
mod encoding;
mod error;
mod health;
mod listener;
mod metrics;
mod models;
mod notes;
mod overflow;
mod plan;
pub mod proto;
mod reload;
mod server;
mod service;
mod signals;
mod stream;
mod telemetry;
mod time;
mod tools;
mod turns;
mod worker;

pub use access::{ApiKeys, NewKey, Origin, RateLimits, Scope};
pub use api::{check_call, check_request};
pub use backend::{Backend, Description, KvLimit, Lanes, ModelBackend, describe};
pub use breaker::BreakerConfig;
pub use error::ServeError;
pub use health::{BaselineError, HealthBaseline, Patience, Probe, ProbeText};
pub use listener::{DoorLimits, TlsFiles};
pub use models::{About, Artifact, BoxError, KeepAlive, MemoryPlan, ModelSpec, PlanError, Room};
pub use overflow::Overflow;
pub use plan::{BLOCKING_THREADS, Limit, Limits, Need, THREADS_BYTES};
pub use server::{ServerConfig, serve, serve_models};
pub use signals::shutdown_signal;
pub use telemetry::{ACCESS_LINES, ForwardConfig, ForwardError, OtlpConfig, otlp_headers};
