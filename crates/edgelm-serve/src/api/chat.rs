//! `POST /v1/chat/completions`.

use super::{
    App,
    conversation::{Conversation, messages},
    fields::{Fields, is_empty},
    functions::toolbox,
    openai::{Envelope, finish_reason, tokens_json, usage_json},
    parameters::{Parameters, REFUSED, Streaming, streaming},
};
use crate::{
    answer::{Answers, Item, Reading, Usage, Whole},
    backend::Backend,
    caller::Caller,
    error::ApiError,
    service::MaxTokens,
    stream::{Frame, Writer, events},
    tools::Call,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::Arc;

const MAX_TOP_LOGPROBS: i64 = 20;

/// A request, checked.
pub(crate) struct Request {
    pub(crate) model: String,
    pub(crate) conversation: Conversation,
    pub(crate) parameters: Parameters,
    pub(crate) streaming: Option<Streaming>,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let messages = messages(fields.required("messages")?)?;
        let logprobs = logprobs(fields)?;
        let mut parameters = Parameters::openai(fields, backend.defaults(), backend.vocab_size(), MaxTokens::Rest)?;
        parameters.options.logprobs = logprobs;
        let toolbox = toolbox(fields, false, backend)?;
        parameters.use_tools(backend, "tools", toolbox.as_ref())?;
        let arguments = fields.object("chat_template_kwargs")?.unwrap_or_default();
        for reserved in ["messages", "tools", "add_generation_prompt"] {
            if arguments.contains_key(reserved) {
                let what = format!("`{reserved}` is set by the request itself");
                return Err(ApiError::invalid("chat_template_kwargs", what));
            }
        }
        let streaming = streaming(fields)?;
        fields.refuse(&[
            ("add_generation_prompt", |value| value == true),
            ("continue_final_message", super::fields::is_false),
            ("function_call", |value| value == "none" || value == "auto"),
            ("functions", is_empty),
        ])?;
        fields.finish_but(REFUSED)?;
        Ok(Self { model, conversation: Conversation { messages, arguments, toolbox }, parameters, streaming })
    }
}

/// A request under way.
pub(super) struct Begun {
    pub(super) model: String,
    pub(super) answers: Answers,
    streaming: Option<Streaming>,
}

/// Reads a request and starts it.
pub(super) async fn begin(app: &App, caller: Caller, mut fields: Fields) -> Result<Begun, ApiError> {
    let service = app.service()?;
    let Request { model, conversation, parameters, streaming } = Request::parse(&mut fields, &*service.backend)?;
    let target = service.target(&model)?;
    let reading = Reading { toolbox: conversation.toolbox.clone(), stops: Vec::new() };
    let prompt = move |backend: &dyn Backend| conversation.prompt(backend);
    let answers = Answers::new(service.start(caller, target, &parameters, "messages", prompt).await?, reading);
    Ok(Begun { model, answers, streaming })
}

/// Answers a conversation.
pub(super) async fn create(State(app): State<Arc<App>>, caller: Caller, fields: Fields) -> Result<Response, ApiError> {
    let Begun { model, answers, streaming } = begin(&app, caller, fields).await?;
    Ok(match streaming {
        Some(Streaming { include_usage }) => {
            let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", &model);
            let calls = vec![0; answers.choices()];
            events(answers, Stream { envelope, include_usage, opened: None, calls })
        }
        None => {
            let (choices, usage) = answers.whole().await?;
            let choices = choices.iter().enumerate().map(|(index, whole)| choice(index, whole)).collect();
            let envelope = Envelope::new("chatcmpl", "chat.completion", &model);
            Json(envelope.wrap(choices, Some(usage_json(&usage)))).into_response()
        }
    })
}

/// `logprobs` switches them on, `top_logprobs` adds alternatives.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(ApiError::invalid("top_logprobs", "only allowed with `logprobs`: true")),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(usize::try_from(top.unwrap_or(0)).unwrap_or(0))),
    }
}

fn choice(index: usize, whole: &Whole) -> Value {
    let content =
        if whole.text.is_empty() && !whole.calls.is_empty() { Value::Null } else { whole.text.as_str().into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !whole.calls.is_empty() {
        message["tool_calls"] = whole.calls.iter().map(call).collect();
    }
    let logprobs = match whole.logprobs.is_empty() {
        true => Value::Null,
        false => json!({"content": tokens_json(&whole.logprobs), "refusal": null}),
    };
    json!({
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(&whole.end.reason),
    })
}

fn call(call: &Call) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_text()},
    })
}

struct Stream {
    envelope: Envelope,
    include_usage: bool,
    /// The choice whose first chunk was sent last.
    opened: Option<usize>,
    /// Calls so far, by choice.
    calls: Vec<usize>,
}

impl Stream {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish_reason: Value) -> Frame {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason});
        let usage = self.include_usage.then_some(Value::Null);
        Frame::data(&self.envelope.wrap(vec![choice], usage))
    }
}

impl Writer for Stream {
    fn item(&mut self, choice: usize, item: Item, _: &Usage) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.opened != Some(choice) {
            self.opened = Some(choice);
            let delta = json!({"role": "assistant", "content": ""});
            frames.push(self.chunk(choice, delta, Value::Null, Value::Null));
        }
        let null = Value::Null;
        match item {
            Item::Text(text, tokens) => {
                let logprobs = match tokens.is_empty() {
                    true => Value::Null,
                    false => json!({"content": tokens_json(&tokens), "refusal": null}),
                };
                frames.push(self.chunk(choice, json!({"content": text}), logprobs, null));
            }
            Item::Call(made) => {
                let index = self.calls.get(choice).copied().unwrap_or(0);
                if let Some(count) = self.calls.get_mut(choice) {
                    *count += 1;
                }
                // First who is called, then with what: as OpenAI does it.
                let mut first = call(&made);
                first["index"] = index.into();
                first["function"]["arguments"] = "".into();
                let rest = json!({"index": index, "function": {"arguments": made.arguments_text()}});
                for delta in [first, rest] {
                    frames.push(self.chunk(choice, json!({"tool_calls": [delta]}), Value::Null, Value::Null));
                }
            }
            Item::End(end) => frames.push(self.chunk(choice, json!({}), null, finish_reason(&end.reason).into())),
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
