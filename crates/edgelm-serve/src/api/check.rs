//! Reading a request without answering it.

use super::{anthropic, chat, completions, embeddings, fields::Fields, generate, grpc, ollama, responses, tokens};
use crate::{backend::Backend, error::ApiError};
use serde_json::Value;

/// Reads a request's body as the route `path` does, for a model, and answers nothing: for fuzzing, and for checking
/// requests ahead. The prompt is not made, and constraints are not compiled.
///
/// # Errors
/// The error's body as the OpenAI API writes it; also for a path that takes no body.
pub fn check_request(path: &str, body: &[u8], backend: &dyn Backend) -> Result<(), Value> {
    Fields::parse(body).and_then(|mut fields| read(path, &mut fields, backend)).map_err(|error| error.body())
}

/// Reads the message of a call of `edgelm.v1.EdgeLM` as the server does, and answers nothing; see [`check_request`].
///
/// # Errors
/// The error's body as the OpenAI API writes it; also for a method that does not exist.
pub fn check_call(method: &str, message: &[u8], backend: &dyn Backend) -> Result<(), Value> {
    let checked = grpc::fields(method, message).and_then(|(path, mut fields)| match path {
        "/generate" => generate::parse_call(&mut fields, backend).map(drop),
        path => read(path, &mut fields, backend),
    });
    checked.map_err(|error| error.body())
}

/// Reads the fields of a request.
pub(super) fn read(path: &str, fields: &mut Fields, backend: &dyn Backend) -> Result<(), ApiError> {
    match path {
        "/v1/chat/completions" => chat::Request::parse(fields, backend).map(drop),
        "/v1/completions" => completions::Request::parse(fields, backend).map(drop),
        "/v1/responses" => responses::Request::parse(fields, backend).map(drop),
        "/v1/embeddings" => embeddings::Request::parse(fields).map(drop),
        "/v1/messages" => anthropic::Request::parse(fields, backend).map(drop),
        "/v1/messages/count_tokens" => anthropic::count_request(fields, backend).map(drop),
        "/api/chat" => ollama::Request::chat(fields, backend).map(drop),
        "/api/generate" => ollama::Request::generate(fields, backend).map(drop),
        "/api/embed" => ollama::embed_request(fields, false).map(drop),
        "/api/embeddings" => ollama::embed_request(fields, true).map(drop),
        "/api/show" => ollama::show_request(fields).map(drop),
        "/generate" => generate::Request::parse(fields, backend).map(drop),
        "/tokenize" => tokens::Request::parse(fields, backend).map(drop),
        "/detokenize" => tokens::parse_detokenize(fields).map(drop),
        _ => Err(ApiError::UnknownUrl { method: "POST".to_owned(), path: path.to_owned() }),
    }
}
