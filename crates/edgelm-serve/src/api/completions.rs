//! `POST /v1/completions`.

use super::{
    App, Parameters, Reply,
    fields::{Fields, wrong_type},
    reply::{answer, finish_reason, finite},
};
use crate::{
    backend::Backend,
    caller::Caller,
    error::ApiError,
    service::MaxTokens,
    worker::{StopReason, TokenLogprob},
};
use axum::{extract::State, response::Response};
use edgelm_engine::EngineError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: MaxTokens = MaxTokens::Default(16);
const MAX_LOGPROBS: i64 = 5;

/// Continues a prompt.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let service = app.service()?;
    let model = fields.required("model")?;
    let model = model.as_str().ok_or_else(|| wrong_type("model", "a string", &model))?;
    let target = service.target(model)?;
    let prompt = Prompt::parse(fields.required("prompt")?)?;
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|count| usize::try_from(count).unwrap_or(0));
    let parameters = Parameters::parse(fields, service.backend.defaults(), DEFAULT_MAX_TOKENS, logprobs)?;
    let run = service.start(caller, target, &parameters, "prompt", move |backend| prompt.tokens(backend)).await?;
    answer(run, model, CompletionReply { offset: 0, top: logprobs.unwrap_or(0) }, parameters.streaming).await
}

/// What to continue.
#[derive(Debug, PartialEq, Eq)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// A string, an array of one string, tokens, or an array of one array of tokens.
    fn parse(value: Value) -> Result<Self, ApiError> {
        let forms = "a string, an array of one string, or an array of tokens";
        let mut items = match value {
            Value::String(text) => return Ok(Self::Text(text)),
            Value::Array(items) => items,
            other => return Err(wrong_type("prompt", forms, &other)),
        };
        if let Some(Value::String(_) | Value::Array(_)) = items.first() {
            if items.len() > 1 {
                let why = Some("one prompt per request".to_owned());
                return Err(ApiError::UnsupportedParameter { param: "prompt".to_owned(), why });
            }
            match items.pop() {
                Some(Value::String(text)) => return Ok(Self::Text(text)),
                Some(Value::Array(tokens)) => items = tokens,
                _ => {}
            }
        }
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = items.iter().map(|item| token(item).ok_or_else(|| wrong_type("prompt", forms, item)));
        Ok(Self::Tokens(tokens.collect::<Result<_, _>>()?))
    }

    fn tokens(self, backend: &dyn Backend) -> Result<Vec<u32>, EngineError> {
        match self {
            Self::Text(text) => backend.text_prompt(&text),
            Self::Tokens(tokens) => Ok(tokens),
        }
    }
}

/// `text_offset` counts characters of the answer.
struct CompletionReply {
    offset: usize,
    top: usize,
}

impl Reply for CompletionReply {
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn choice(&self, index: usize, text: &str, logprobs: &[TokenLogprob], reason: StopReason) -> Value {
        choice(index, text, logprobs_json(logprobs, &mut 0, self.top), finish_reason(reason).into())
    }

    fn opening(&mut self, _: usize) -> Option<Value> {
        self.offset = 0;
        None
    }

    fn delta(&mut self, index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value {
        choice(index, text, logprobs_json(logprob, &mut self.offset, self.top), Value::Null)
    }

    fn closing(&self, index: usize, reason: StopReason) -> Value {
        choice(index, "", Value::Null, finish_reason(reason).into())
    }
}

fn choice(index: usize, text: &str, logprobs: Value, finish_reason: Value) -> Value {
    json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason})
}

/// Null where none were asked for. `top_logprobs` also holds the token itself, as OpenAI's does.
fn logprobs_json<'a>(
    tokens: impl IntoIterator<Item = &'a TokenLogprob>,
    offset: &mut usize,
    top_wanted: usize,
) -> Value {
    let (mut texts, mut values, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in tokens {
        texts.push(token.token.as_str());
        values.push(finite(token.logprob));
        let mut best = Map::new();
        for (text, logprob) in &token.top {
            best.entry(text.as_str()).or_insert_with(|| finite(*logprob).into());
        }
        best.entry(token.token.as_str()).or_insert_with(|| finite(token.logprob).into());
        top.push(best);
        offsets.push(*offset);
        *offset += token.token.chars().count();
    }
    if texts.is_empty() {
        return Value::Null;
    }
    let top = if top_wanted == 0 { Value::Null } else { top.into() };
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_forms() {
        let parse = |value| Prompt::parse(value).expect("valid");
        assert_eq!(parse(json!("a")), Prompt::Text("a".to_owned()));
        assert_eq!(parse(json!(["a"])), Prompt::Text("a".to_owned()));
        assert_eq!(parse(json!([1, 2])), Prompt::Tokens(vec![1, 2]));
        assert_eq!(parse(json!([[1, 2]])), Prompt::Tokens(vec![1, 2]));
        for bad in [json!(1), json!(["a", "b"]), json!([[1], [2]]), json!([1, "a"]), json!([-1]), json!([1.5])] {
            assert!(Prompt::parse(bad).is_err());
        }
    }
}
