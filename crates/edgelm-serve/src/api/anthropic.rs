//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API.

use super::{
    App,
    conversation::{Conversation, name_result, past_call},
    fields::{Fields, Refused, is_empty, items, never, wrong_type},
    functions::{ToolChoice, build, function_name, schema},
    openai::new_id,
    parameters::{Parameters, overflow, own_sampling, stop},
};
use crate::{
    answer::{Answers, End, Item, Reading, Reason, Usage},
    backend::Backend,
    caller::Caller,
    error::ApiError,
    overflow::Source,
    service::MaxTokens,
    stream::{Frame, Writer, events},
    tools::{Call, Tool, Toolbox},
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use edgelm_model::Message;
use serde_json::{Value, json};
use std::sync::Arc;

const REFUSED: &[Refused] = &[
    CACHE_HINT,
    ("container", never),
    ("context_management", never),
    ("diagnostics", never),
    ("inference_geo", never),
    ("mcp_servers", is_empty),
    ("output_config", is_empty),
    ("output_format", never),
    ("service_tier", |value| value == "auto" || value == "standard_only"),
    ("speed", |value| value == "standard"),
    ("thinking", |value| value["type"] == "disabled" && value.as_object().is_some_and(|fields| fields.len() == 1)),
    ("user_profile_id", never),
    ("workspace_id", never),
];

/// A hint to caches that changes no answer.
const CACHE_HINT: Refused = ("cache_control", |value| value["type"] == "ephemeral");

/// A request, checked.
pub(crate) struct Request {
    model: String,
    conversation: Conversation,
    parameters: Parameters,
    stops: Vec<String>,
    is_streaming: bool,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let max_tokens = fields.count("max_tokens", 1)?;
        let max_tokens = max_tokens.ok_or_else(|| ApiError::MissingParameter { param: "max_tokens".to_owned() })?;
        let mut sampling = own_sampling(backend.defaults());
        if let Some(temperature) = fields.number("temperature", 0.0..=1.0)? {
            sampling.temperature = temperature;
        }
        if let Some(top_k) = fields.count("top_k", 0)? {
            sampling.top_k = top_k;
        }
        if let Some(top_p) = fields.number("top_p", 0.0..=1.0)? {
            sampling.top_p = top_p.max(f32::MIN_POSITIVE);
        }
        let mut parameters = Parameters::new(sampling, MaxTokens::Asked(max_tokens));
        parameters.overflow = overflow(fields)?;
        let stops = stop(fields, "stop_sequences")?;
        if let Some(mut metadata) = fields.inner("metadata")? {
            metadata.string("user_id")?;
            metadata.finish()?;
        }
        let is_streaming = fields.boolean("stream")?.unwrap_or(false);
        let (model, conversation) = conversation(fields, backend)?;
        parameters.use_tools(backend, "tools", conversation.toolbox.as_ref())?;
        fields.finish_but(REFUSED)?;
        Ok(Self { model, conversation, parameters, stops, is_streaming })
    }
}

/// A request to count, checked.
pub(crate) fn count_request(fields: &mut Fields, backend: &dyn Backend) -> Result<Conversation, ApiError> {
    let (_, conversation) = conversation(fields, backend)?;
    fields.finish_but(REFUSED)?;
    Ok(conversation)
}

/// What makes the prompt, which is also what is counted.
fn conversation(fields: &mut Fields, backend: &dyn Backend) -> Result<(String, Conversation), ApiError> {
    let model = fields.required_string("model")?;
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        let text = match system {
            Value::String(text) => text,
            Value::Array(_) => {
                let blocks = items("system", system)?.into_iter();
                blocks
                    .map(|(param, block)| text_block(Fields::of(param, block)?))
                    .collect::<Result<Vec<_>, _>>()?
                    .join("\n")
            }
            other => return Err(wrong_type("system", "a string or an array of blocks", &other)),
        };
        messages.push(json!({"role": "system", "content": text}));
    }
    let values = items("messages", fields.required("messages")?)?;
    if values.is_empty() {
        return Err(ApiError::invalid("messages", "at least one message is needed"));
    }
    let mut last = String::new();
    for (param, value) in values {
        last.clone_from(&param);
        message(&mut messages, Fields::of(param, value)?)?;
    }
    if messages.last().is_some_and(|message| message["role"] == "assistant") {
        let why = Some("to begin the answer with given words is; the last message must be the user's".to_owned());
        return Err(ApiError::UnsupportedParameter { param: format!("{last}.role"), why });
    }
    let toolbox = toolbox(fields, backend)?;
    Ok((model, Conversation { messages, toolbox, ..Conversation::default() }))
}

fn message(messages: &mut Vec<Message>, mut fields: Fields) -> Result<(), ApiError> {
    let role = fields.required_string("role")?;
    if role != "user" && role != "assistant" {
        return Err(ApiError::invalid(fields.name("role"), "must be `user` or `assistant`"));
    }
    let param = fields.name("content");
    let blocks = match fields.required("content")? {
        Value::String(text) => {
            messages.push(json!({"role": role, "content": text}));
            return fields.finish();
        }
        value @ Value::Array(_) => items(&param, value)?,
        other => return Err(wrong_type(&param, "a string or an array of blocks", &other)),
    };
    fields.finish()?;
    let (mut texts, mut calls) = (Vec::new(), Vec::new());
    for (param, block) in blocks {
        let mut block = Fields::of(param, block)?;
        let kind = block.peek("type");
        match (kind.as_str().unwrap_or_default(), role.as_str()) {
            ("text", _) => texts.push(text_block(block)?),
            ("tool_use", "assistant") => {
                block.take("type");
                let (id, name) = (block.required_string("id")?, block.required_string("name")?);
                let input = block.object("input")?.unwrap_or_default();
                calls.push(past_call(&id, &name, input.into()));
                block.finish_but(&[CACHE_HINT, ("caller", |value| value["type"] == "direct")])?;
            }
            ("tool_result", "user") => {
                block.take("type");
                let id = block.required_string("tool_use_id")?;
                let param = block.name("content");
                let mut text = match block.take("content") {
                    None => String::new(),
                    Some(Value::String(text)) => text,
                    Some(value) => {
                        let blocks = items(&param, value)?.into_iter();
                        blocks
                            .map(|(param, block)| text_block(Fields::of(param, block)?))
                            .collect::<Result<Vec<_>, _>>()?
                            .join("\n")
                    }
                };
                // Templates have no place for this but the text.
                if block.boolean("is_error")?.unwrap_or(false) {
                    text = format!("Error: {text}");
                }
                block.finish_but(&[CACHE_HINT])?;
                let mut result = json!({"role": "tool", "content": text, "tool_call_id": id});
                name_result(messages, &mut result);
                messages.push(result);
            }
            ("", _) => return Err(ApiError::MissingParameter { param: block.name("type") }),
            (other, _) => {
                let why = Some(format!("`{other}` is, in a message of the {role}"));
                return Err(ApiError::UnsupportedParameter { param: block.name("type"), why });
            }
        }
    }
    if !texts.is_empty() || !calls.is_empty() {
        let mut message = json!({"role": role, "content": texts.join("\n")});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        messages.push(message);
    }
    Ok(())
}

fn text_block(mut block: Fields) -> Result<String, ApiError> {
    let kind = block.required_string("type")?;
    if kind != "text" {
        let why = Some(format!("`{kind}` is; only blocks of type `text` are taken"));
        return Err(ApiError::UnsupportedParameter { param: block.name("type"), why });
    }
    let text = block.required_string("text")?;
    block.finish_but(&[CACHE_HINT, ("citations", is_empty)])?;
    Ok(text)
}

fn toolbox(fields: &mut Fields, backend: &dyn Backend) -> Result<Option<Toolbox>, ApiError> {
    let values = fields.items("tools")?.unwrap_or_default();
    let tools: Vec<Tool> =
        values.into_iter().map(|(param, value)| tool(Fields::of(param, value)?)).collect::<Result<_, _>>()?;
    let mut parallel = true;
    let choice = match fields.inner("tool_choice")? {
        None => ToolChoice::Auto,
        Some(mut choice) => {
            let kind = choice.required_string("type")?;
            parallel = !choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
            let parsed = match kind.as_str() {
                "auto" => ToolChoice::Auto,
                "any" => ToolChoice::Required,
                "none" => ToolChoice::None,
                "tool" => ToolChoice::Named(vec![choice.required_string("name")?]),
                other => {
                    let what = format!("`{other}` is none of `auto`, `any`, `tool` and `none`");
                    return Err(ApiError::invalid(choice.name("type"), what));
                }
            };
            choice.finish()?;
            parsed
        }
    };
    match (tools.is_empty(), &choice) {
        (true, ToolChoice::Auto | ToolChoice::None) => Ok(None),
        (true, _) => Err(ApiError::invalid("tool_choice", "there are no `tools` to choose from")),
        (false, _) => build(backend, "tools", "tool_choice", tools, choice, parallel),
    }
}

fn tool(mut fields: Fields) -> Result<Tool, ApiError> {
    match fields.string("type")?.as_deref() {
        None | Some("custom") => {}
        Some(other) => {
            let why = Some(format!("`{other}` is; only functions of the client's own are taken"));
            return Err(ApiError::UnsupportedParameter { param: fields.name("type"), why });
        }
    }
    let name = function_name(&mut fields)?;
    let description = fields.string("description")?;
    let parameters = schema(&mut fields, "input_schema")?;
    let strict = fields.boolean("strict")?.unwrap_or(false);
    fields.finish_but(&[CACHE_HINT])?;
    Ok(Tool { name, description, parameters, strict })
}

/// Answers a conversation.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let request = Request::parse(&mut fields, &*lease.backend())?;
    let Request { model, conversation, parameters, stops, is_streaming } = request;
    let model = lease.answers_for(model);
    let reading = Reading { toolbox: conversation.toolbox.clone(), stops };
    let prompt = Source::chat(conversation);
    let answers = Answers::new(lease.start(caller, &parameters, "messages", prompt).await?, reading);
    if is_streaming {
        return Ok(events(answers, Stream { model, blocks: 0, in_text: false }));
    }
    let (choices, usage) = answers.whole().await?;
    let mut answer = opening(&model, &usage);
    for whole in choices {
        let mut content = Vec::new();
        if !whole.text.is_empty() {
            content.push(json!({"type": "text", "text": whole.text}));
        }
        content.extend(whole.calls.iter().map(|call| tool_use(call, call.arguments.clone().into())));
        answer["content"] = content.into();
        let (reason, sequence) = stop_reason(&whole.end);
        answer["stop_reason"] = reason.into();
        answer["stop_sequence"] = sequence;
    }
    answer["usage"]["output_tokens"] = usage.completion_tokens.into();
    Ok(Json(answer).into_response())
}

/// Counts the prompt's tokens, as `create` would make it.
pub(super) async fn count_tokens(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let conversation = count_request(&mut fields, &*lease.backend())?;
    let tokens = lease.prepare(move |backend| conversation.prompt(backend)).await?;
    let tokens = tokens.map_err(|error| ApiError::from_engine(&error, "messages"))?;
    Ok(Json(json!({"input_tokens": tokens.len()})))
}

fn opening(model: &str, usage: &Usage) -> Value {
    json!({
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {"input_tokens": usage.prompt_tokens, "output_tokens": 0},
    })
}

fn tool_use(call: &Call, input: Value) -> Value {
    json!({"type": "tool_use", "id": format!("toolu_{}", call.id), "name": call.name, "input": input})
}

fn stop_reason(end: &End) -> (&'static str, Value) {
    match &end.reason {
        Reason::Stop => ("end_turn", Value::Null),
        Reason::StopText(text) => ("stop_sequence", text.as_str().into()),
        Reason::Length => ("max_tokens", Value::Null),
        Reason::Calls => ("tool_use", Value::Null),
    }
}

/// Blocks one after the other, each begun, filled and ended.
struct Stream {
    model: String,
    /// Begun so far.
    blocks: usize,
    in_text: bool,
}

impl Stream {
    fn begin(&mut self, block: &Value) -> Frame {
        self.blocks += 1;
        let event = json!({"type": "content_block_start", "index": self.blocks - 1, "content_block": block});
        Frame::named("content_block_start", &event)
    }

    fn delta(&self, delta: &Value) -> Frame {
        let event = json!({"type": "content_block_delta", "index": self.blocks.saturating_sub(1), "delta": delta});
        Frame::named("content_block_delta", &event)
    }

    fn end_block(&self) -> Frame {
        let event = json!({"type": "content_block_stop", "index": self.blocks.saturating_sub(1)});
        Frame::named("content_block_stop", &event)
    }
}

impl Writer for Stream {
    fn open(&mut self, usage: &Usage) -> Vec<Frame> {
        let message = opening(&self.model, usage);
        vec![
            Frame::named("message_start", &json!({"type": "message_start", "message": message})),
            Frame::named("ping", &json!({"type": "ping"})),
        ]
    }

    fn item(&mut self, _: usize, item: Item, usage: &Usage) -> Vec<Frame> {
        let mut frames = Vec::new();
        match item {
            Item::Text(text, _) => {
                if !self.in_text {
                    self.in_text = true;
                    frames.push(self.begin(&json!({"type": "text", "text": ""})));
                }
                frames.push(self.delta(&json!({"type": "text_delta", "text": text})));
            }
            Item::Call(call) => {
                if std::mem::take(&mut self.in_text) {
                    frames.push(self.end_block());
                }
                frames.push(self.begin(&tool_use(&call, json!({}))));
                let json = call.arguments_text();
                frames.push(self.delta(&json!({"type": "input_json_delta", "partial_json": json})));
                frames.push(self.end_block());
            }
            Item::End(end) => {
                if std::mem::take(&mut self.in_text) {
                    frames.push(self.end_block());
                }
                let (reason, sequence) = stop_reason(&end);
                let event = json!({
                    "type": "message_delta",
                    "delta": {"stop_reason": reason, "stop_sequence": sequence},
                    "usage": {"output_tokens": usage.completion_tokens},
                });
                frames.push(Frame::named("message_delta", &event));
            }
        }
        frames
    }

    fn close(&mut self, _: &Usage) -> Vec<Frame> {
        vec![Frame::named("message_stop", &json!({"type": "message_stop"}))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::named("error", &error.anthropic_body())]
    }
}
