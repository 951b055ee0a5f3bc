//! HTTP server with the APIs of OpenAI, Ollama and Anthropic, in front of one model.
//!
//! Separate because nothing below may know about HTTP, and because everything a client sends is untrusted: requests are
//! read strictly (a field is honoured or refused, never ignored), checked against the model, admitted into a bounded
//! queue, and only then generated, several at a time, on one engine thread. Must not depend on kernels or read model files:
//! it knows a [`Backend`].

mod access;
mod admission;
mod answer;
mod api;
mod backend;
mod caller;
mod error;
mod listener;
mod metrics;
pub mod proto;
mod reload;
mod server;
mod service;
mod signals;
mod stream;
mod tools;
mod worker;

pub use access::{ApiKeys, NewKey, Origin, RateLimits, Scope};
pub use api::check_request;
pub use backend::{Backend, Description, KvLimit, Lanes, ModelBackend};
pub use error::ServeError;
pub use listener::{DoorLimits, TlsFiles};
pub use server::{ServerConfig, serve, serve_loading};
pub use signals::shutdown_signal;
