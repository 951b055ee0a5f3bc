//! `POST /generate`: the simplest form, a prompt in and a text out.

use super::{
    App,
    completions::Prompt,
    fields::Fields,
    parameters::{Parameters, REFUSED},
};
use crate::{
    answer::{Answers, Item, Reading, Usage},
    backend::Backend,
    caller::Caller,
    error::ApiError,
    overflow::Source as PromptSource,
    service::MaxTokens,
    stream::{Frame, Writer, events},
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request, checked.
pub(crate) struct Request {
    prompt: Prompt,
    parameters: Parameters,
    is_streaming: bool,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        fields.string("model")?;
        let prompt = Prompt::parse("prompt", fields.required("prompt")?)?;
        let parameters = Parameters::openai(fields, backend.defaults(), backend.vocab_size(), MaxTokens::Rest)?;
        if parameters.n != 1 {
            let why = Some("one text per request".to_owned());
            return Err(ApiError::UnsupportedParameter { param: "n".to_owned(), why });
        }
        let is_streaming = fields.boolean("stream")?.unwrap_or(false);
        fields.refuse(&[("logprobs", super::fields::never)])?;
        fields.finish_but(REFUSED)?;
        Ok(Self { prompt, parameters, is_streaming })
    }
}

/// Log-probabilities of a token's alternatives, at most.
const MAX_LOGPROBS: i64 = 20;

/// The same for gRPC, where a call can have several choices and log-probabilities, and its method says whether it streams:
/// model, prompt and the rest.
pub(super) fn parse_call(fields: &mut Fields, backend: &dyn Backend) -> Result<(String, Prompt, Parameters), ApiError> {
    let model = fields.required_string("model")?;
    let prompt = Prompt::parse("prompt", fields.required("prompt")?)?;
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
    let mut parameters = Parameters::openai(fields, backend.defaults(), backend.vocab_size(), MaxTokens::Rest)?;
    parameters.options.logprobs = logprobs.map(|count| usize::try_from(count).unwrap_or(0));
    fields.finish()?;
    Ok((model, prompt, parameters))
}

/// Begins a gRPC call.
pub(super) async fn begin(app: &App, caller: Caller, mut fields: Fields) -> Result<(String, Answers), ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let (model, prompt, parameters) = parse_call(&mut fields, &*lease.backend())?;
    let model = lease.answers_for(model);
    let run = lease.start(caller, &parameters, "prompt", PromptSource::Plain(prompt)).await?;
    Ok((model, Answers::new(run, Reading::default())))
}

/// Continues a prompt.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let Request { prompt, parameters, is_streaming } = Request::parse(&mut fields, &*lease.backend())?;
    let tokens = PromptSource::Plain(prompt);
    let answers = Answers::new(lease.start(caller, &parameters, "prompt", tokens).await?, Reading::default());
    if is_streaming {
        return Ok(events(answers, Stream));
    }
    let (choices, usage) = answers.whole().await?;
    let text: String = choices.iter().map(|choice| choice.text.as_str()).collect();
    let reason = choices.first().map_or("stop", |choice| super::openai::finish_reason(&choice.end.reason));
    Ok(Json(answer(&text, reason, &usage)).into_response())
}

fn answer(text: &str, finish_reason: &str, usage: &Usage) -> Value {
    json!({
        "text": text,
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    })
}

/// `{"text": piece}` after `{"text": piece}`, the last with the reason and the counts.
struct Stream;

impl Writer for Stream {
    fn item(&mut self, _: usize, item: Item, usage: &Usage) -> Vec<Frame> {
        match item {
            Item::Text(text, _) => vec![Frame::data(&json!({"text": text}))],
            Item::Call(_) => Vec::new(),
            Item::End(end) => {
                vec![Frame::data(&answer("", super::openai::finish_reason(&end.reason), usage))]
            }
        }
    }

    fn close(&mut self, _: &Usage) -> Vec<Frame> {
        vec![Frame { event: None, data: "[DONE]".to_owned() }]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&error.body())]
    }
}
