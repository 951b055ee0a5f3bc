//! `POST /v1/completions`.

use super::{
    App,
    fields::{Fields, is_empty, is_one, wrong_type},
    openai::{Envelope, finish_reason, finite, usage_json},
    parameters::{Parameters, REFUSED, Streaming, streaming},
};
use crate::{
    answer::{Answers, Item, Reading, Usage, Whole},
    backend::Backend,
    caller::Caller,
    error::ApiError,
    overflow::Source as PromptSource,
    service::MaxTokens,
    stream::{Frame, Writer, events},
    worker::TokenLogprob,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use edgelm_engine::EngineError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: MaxTokens = MaxTokens::Default(16);
const MAX_LOGPROBS: i64 = 5;

/// A request, checked.
pub(crate) struct Request {
    model: String,
    prompt: Prompt,
    /// Begin the answer with the prompt.
    echo: bool,
    pub(crate) parameters: Parameters,
    streaming: Option<Streaming>,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let prompt = Prompt::parse("prompt", fields.required("prompt")?)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // Older clients write false where newer ones write nothing.
        fields.false_is_absent("logprobs");
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|count| usize::try_from(count).unwrap_or(0));
        if echo && logprobs.is_some() {
            let why = Some("with `echo`, which would need those of the prompt".to_owned());
            return Err(ApiError::UnsupportedParameter { param: "logprobs".to_owned(), why });
        }
        let mut parameters = Parameters::openai(fields, backend.defaults(), backend.vocab_size(), DEFAULT_MAX_TOKENS)?;
        parameters.options.logprobs = logprobs;
        let streaming = streaming(fields)?;
        fields.refuse(&[
            ("best_of", is_one),
            ("suffix", is_empty),
            ("tools", is_empty),
            ("tool_choice", |value| value == "none"),
            ("parallel_tool_calls", super::fields::never),
            ("top_logprobs", super::fields::never),
        ])?;
        fields.finish_but(REFUSED)?;
        Ok(Self { model, prompt, echo, parameters, streaming })
    }
}

/// Continues a prompt.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let Request { model, prompt, echo, parameters, streaming } = Request::parse(&mut fields, &*lease.backend())?;
    let model = lease.answers_for(model);
    let text = match echo {
        true => prompt.text(&*lease.backend()).map_err(|error| ApiError::from_engine(&error, "prompt"))?,
        false => String::new(),
    };
    let tokens = PromptSource::Plain(prompt);
    let answers = Answers::new(lease.start(caller, &parameters, "prompt", tokens).await?, Reading::default());
    let top = parameters.options.logprobs.unwrap_or(0);
    let envelope = Envelope::new("cmpl", "text_completion", &model);
    Ok(match streaming {
        Some(Streaming { include_usage }) => {
            let stream = Stream { envelope, include_usage, echo: text, opened: None, offset: 0, top };
            events(answers, stream)
        }
        None => {
            let (choices, usage) = answers.whole().await?;
            let choices = choices.iter().enumerate().map(|(index, whole)| whole_choice(index, &text, whole, top));
            Json(envelope.wrap(choices.collect(), Some(usage_json(&usage)))).into_response()
        }
    })
}

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// A string, an array of one string, tokens, or an array of one array of tokens.
    pub(super) fn parse(param: &str, value: Value) -> Result<Self, ApiError> {
        let forms = "a string, an array of one string, or an array of tokens";
        let mut items = match value {
            Value::String(text) => return Ok(Self::Text(text)),
            Value::Array(items) => items,
            other => return Err(wrong_type(param, forms, &other)),
        };
        if let Some(Value::String(_) | Value::Array(_)) = items.first() {
            if items.len() > 1 {
                let why = Some("one prompt per request".to_owned());
                return Err(ApiError::UnsupportedParameter { param: param.to_owned(), why });
            }
            match items.pop() {
                Some(Value::String(text)) => return Ok(Self::Text(text)),
                Some(Value::Array(tokens)) => items = tokens,
                _ => {}
            }
        }
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = items.iter().map(|item| token(item).ok_or_else(|| wrong_type(param, forms, item)));
        Ok(Self::Tokens(tokens.collect::<Result<_, _>>()?))
    }

    pub(crate) fn tokens(&self, backend: &dyn Backend) -> Result<Vec<u32>, EngineError> {
        match self {
            Self::Text(text) => backend.text_prompt(text),
            Self::Tokens(tokens) => Ok(tokens.clone()),
        }
    }

    /// The prompt as text.
    fn text(&self, backend: &dyn Backend) -> Result<String, EngineError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Tokens(tokens) => backend.text(tokens),
        }
    }
}

fn whole_choice(index: usize, echo: &str, whole: &Whole, top: usize) -> Value {
    let logprobs = logprobs_json(&whole.logprobs, &mut 0, top);
    choice(index, &format!("{echo}{}", whole.text), logprobs, finish_reason(&whole.end.reason).into())
}

/// `text_offset` counts characters of the answer.
struct Stream {
    envelope: Envelope,
    include_usage: bool,
    echo: String,
    /// The choice whose first chunk was sent last.
    opened: Option<usize>,
    offset: usize,
    top: usize,
}

impl Stream {
    fn chunk(&self, choice: Value) -> Frame {
        Frame::data(&self.envelope.wrap(vec![choice], self.include_usage.then_some(Value::Null)))
    }
}

impl Writer for Stream {
    fn item(&mut self, index: usize, item: Item, _: &Usage) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.opened != Some(index) {
            self.opened = Some(index);
            self.offset = 0;
            if !self.echo.is_empty() {
                frames.push(self.chunk(choice(index, &self.echo, Value::Null, Value::Null)));
            }
        }
        match item {
            Item::Text(text, tokens) => {
                let logprobs = logprobs_json(&tokens, &mut self.offset, self.top);
                frames.push(self.chunk(choice(index, &text, logprobs, Value::Null)));
            }
            // There are no functions here to call.
            Item::Call(_) => {}
            Item::End(end) => {
                frames.push(self.chunk(choice(index, "", Value::Null, finish_reason(&end.reason).into())));
            }
        }
        frames
    }

    fn close(&mut self, usage: &Usage) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.include_usage {
            frames.push(Frame::data(&self.envelope.wrap(Vec::new(), Some(usage_json(usage)))));
        }
        frames.push(Frame { event: None, data: "[DONE]".to_owned() });
        frames
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&error.body())]
    }
}

fn choice(index: usize, text: &str, logprobs: Value, finish_reason: Value) -> Value {
    json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason})
}

/// Null where none were asked for. `top_logprobs` also holds the token itself, as OpenAI's does.
fn logprobs_json(tokens: &[TokenLogprob], offset: &mut usize, top_wanted: usize) -> Value {
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
        let parse = |value| Prompt::parse("prompt", value).expect("valid");
        assert_eq!(parse(json!("a")), Prompt::Text("a".to_owned()));
        assert_eq!(parse(json!(["a"])), Prompt::Text("a".to_owned()));
        assert_eq!(parse(json!([1, 2])), Prompt::Tokens(vec![1, 2]));
        assert_eq!(parse(json!([[1, 2]])), Prompt::Tokens(vec![1, 2]));
        for bad in [json!(1), json!(["a", "b"]), json!([[1], [2]]), json!([1, "a"]), json!([-1]), json!([1.5])] {
            assert!(Prompt::parse("prompt", bad).is_err());
        }
    }
}
