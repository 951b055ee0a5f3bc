//! `POST /tokenize` and `POST /detokenize`, in the forms of vLLM and of llama.cpp's server.

use super::{
    App, completions::Prompt, conversation::Conversation, conversation::messages, fields::Fields, fields::wrong_type,
    functions::toolbox,
};
use crate::{backend::Backend, caller::Caller, error::ApiError};
use axum::{Json, extract::State};
use edgelm_engine::EngineError;
use serde_json::{Value, json};
use std::sync::Arc;

/// What to tokenize.
pub(crate) enum Request {
    Prompt { text: String, add_special: bool },
    Content { text: String, add_special: bool, with_pieces: bool },
    Chat(Box<Conversation>),
}

impl Request {
    /// vLLM sends `prompt` or `messages`, llama.cpp's server `content`.
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        fields.string("model")?;
        let prompt = fields.string("prompt")?;
        let content = fields.string("content")?;
        let chat = fields.take("messages");
        let add_special = fields.boolean("add_special_tokens")?;
        let add_special_llama = fields.boolean("add_special")?;
        let with_pieces = fields.boolean("with_pieces")?.unwrap_or(false);
        let toolbox = toolbox(fields, false, backend)?;
        let request = match (prompt, content, chat) {
            (Some(text), None, None) => Self::Prompt { text, add_special: add_special.unwrap_or(true) },
            (None, Some(text), None) => {
                Self::Content { text, add_special: add_special_llama.unwrap_or(false), with_pieces }
            }
            (None, None, Some(chat)) => {
                let messages = messages(chat)?;
                Self::Chat(Box::new(Conversation { messages, toolbox, ..Conversation::default() }))
            }
            (None, None, None) => return Err(ApiError::MissingParameter { param: "prompt".to_owned() }),
            _ => {
                return Err(ApiError::invalid("prompt", "only one of `prompt`, `content` and `messages` can be given"));
            }
        };
        fields.finish_but(&[
            ("add_generation_prompt", |value| value == true),
            ("parse_special", |value| value == true),
            ("return_token_strs", super::fields::is_false),
        ])?;
        Ok(request)
    }
}

/// Ids of a text or a chat.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let request = Request::parse(&mut fields, &*lease.backend())?;
    let tokenize = move |backend: &dyn Backend| -> Result<Value, EngineError> {
        let encode = |text: &str, special: bool| if special { backend.text_prompt(text) } else { backend.tokens(text) };
        let tokens = match request {
            Request::Prompt { text, add_special } => encode(&text, add_special)?,
            Request::Chat(conversation) => conversation.prompt(backend)?,
            Request::Content { text, add_special, with_pieces } => {
                let tokens = encode(&text, add_special)?;
                return Ok(match with_pieces {
                    false => json!({"tokens": tokens}),
                    true => {
                        let piece = |&id: &u32| json!({"id": id, "piece": backend.token_text(id)});
                        json!({"tokens": tokens.iter().map(piece).collect::<Vec<_>>()})
                    }
                });
            }
        };
        Ok(json!({"tokens": tokens, "count": tokens.len(), "max_model_len": backend.context()}))
    };
    let answer = lease.prepare(tokenize).await?;
    Ok(Json(answer.map_err(|error| ApiError::from_engine(&error, "prompt"))?))
}

/// Text of ids.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let tokens = parse_detokenize(&mut fields)?;
    let text = lease.backend().text(&tokens).map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
    // vLLM's word for the text, and llama.cpp's.
    Ok(Json(json!({"prompt": text, "content": text})))
}

pub(crate) fn parse_detokenize(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    fields.string("model")?;
    let value = fields.required("tokens")?;
    let tokens = match value {
        Value::Array(ref all) if all.is_empty() => Vec::new(),
        Value::Array(ref all) if all[0].is_u64() => match Prompt::parse("tokens", value)? {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(_) => Vec::new(),
        },
        other => return Err(wrong_type("tokens", "an array of tokens", &other)),
    };
    fields.finish()?;
    Ok(tokens)
}
