//! `POST /v1/responses`: OpenAI's newer API, without memory: every request carries its whole conversation.

use super::{
    App,
    conversation::{Conversation, arguments, name_result, past_call, text_part},
    fields::{Fields, Refused, is_empty, is_false, items, never, wrong_type},
    format::{named_schema, response_format},
    functions::toolbox,
    openai::{new_id, tokens_json},
    parameters::{Parameters, labels, overflow, sampling},
};
use crate::{
    answer::{Answers, End, Item, Reading, Reason, Usage},
    backend::Backend,
    caller::Caller,
    error::ApiError,
    overflow::{Overflow, Source},
    service::{MaxTokens, unix_now},
    stream::{Frame, Writer, events},
    tools::Call,
    worker::TokenLogprob,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use edgelm_model::Message;
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of the API that this server does not have. Answers are not stored, so nothing can refer to them.
const REFUSED: &[Refused] = &[
    ("access_programs", never),
    ("background", is_false),
    ("background_options", never),
    ("conversation", never),
    ("context_management", never),
    ("image", never),
    ("include", is_empty),
    ("max_tool_calls", never),
    ("moderation", never),
    ("previous_response_id", never),
    ("prompt", never),
    ("prompt_cache_options", never),
    ("reasoning", |value| value["effort"] == "none" && value.as_object().is_some_and(|fields| fields.len() == 1)),
    ("service_tier", |value| value == "auto" || value == "default"),
    ("store", is_false),
];

/// A request, checked.
pub(crate) struct Request {
    model: String,
    conversation: Conversation,
    parameters: Parameters,
    is_streaming: bool,
    /// What the answer repeats of the request.
    echo: Value,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let mut echo = json!({});
        for name in ["instructions", "metadata", "max_output_tokens", "temperature", "top_p", "text"] {
            echo[name] = fields.peek(name);
        }
        for (name, default) in
            [("tools", json!([])), ("tool_choice", json!("auto")), ("parallel_tool_calls", json!(true))]
        {
            echo[name] = match fields.peek(name) {
                Value::Null => default,
                value => value,
            };
        }
        if echo["text"].is_null() {
            echo["text"] = json!({"format": {"type": "text"}});
        }
        let model = fields.required_string("model")?;
        let mut messages = Vec::new();
        if let Some(instructions) = fields.string("instructions")? {
            messages.push(json!({"role": "system", "content": instructions}));
        }
        input(&mut messages, fields.required("input")?)?;
        let max_tokens = match fields.count("max_output_tokens", 1)? {
            Some(max) => MaxTokens::Asked(max),
            None => backend.defaults().max_new_tokens.map_or(MaxTokens::Rest, MaxTokens::Default),
        };
        let mut parameters = Parameters::new(sampling(fields, backend.defaults())?, max_tokens);
        let ours = overflow(fields)?;
        parameters.overflow = match fields.string("truncation")?.as_deref() {
            None => ours,
            Some(_) if ours.is_some() => {
                return Err(ApiError::invalid(
                    "truncation",
                    "`overflow` says the same in other words: give one of them",
                ));
            }
            Some("disabled") => Some(Overflow::Refuse),
            Some("auto") => {
                echo["truncation"] = "auto".into();
                Some(Overflow::Slide)
            }
            Some(_) => return Err(ApiError::invalid("truncation", "must be `auto` or `disabled`")),
        };
        if let Some(top) = fields.count("top_logprobs", 0)? {
            if top > 20 {
                return Err(ApiError::invalid("top_logprobs", format!("{top} is outside 0 to 20")));
            }
            parameters.options.logprobs = (top > 0).then_some(top);
        }
        if let Some(mut text) = fields.inner("text")? {
            if let Some(format) = text.inner("format")? {
                parameters.constraint = text_format(format)?;
            }
            text.finish_but(&[("verbosity", |value| value == "medium")])?;
        }
        let toolbox = toolbox(fields, true, backend)?;
        parameters.use_tools(backend, "tools", toolbox.as_ref())?;
        let is_streaming = fields.boolean("stream")?.unwrap_or(false);
        if let Some(mut options) = fields.inner("stream_options")? {
            options.finish_but(&[("include_obfuscation", is_false)])?;
        }
        labels(fields)?;
        fields.finish_but(REFUSED)?;
        let conversation = Conversation { messages, toolbox, ..Conversation::default() };
        Ok(Self { model, conversation, parameters, is_streaming, echo })
    }
}

/// As `response_format`, but the schema's fields stand beside `type`.
fn text_format(mut format: Fields) -> Result<Option<super::Wanted>, ApiError> {
    if format.peek("type") != "json_schema" {
        return response_format(format);
    }
    format.take("type");
    named_schema(format).map(Some)
}

/// A text, or items: messages, calls and their results.
fn input(messages: &mut Vec<Message>, value: Value) -> Result<(), ApiError> {
    if let Value::String(text) = value {
        messages.push(json!({"role": "user", "content": text}));
        return Ok(());
    }
    let values = items("input", value)?;
    if values.is_empty() {
        return Err(ApiError::invalid("input", "at least one item is needed"));
    }
    for (param, value) in values {
        item(messages, Fields::of(param, value)?)?;
    }
    Ok(())
}

fn item(messages: &mut Vec<Message>, mut fields: Fields) -> Result<(), ApiError> {
    let kind = fields.string("type")?.unwrap_or_else(|| "message".to_owned());
    // Answers come back as input with these.
    fields.string("id")?;
    fields.string("status")?;
    match kind.as_str() {
        "message" => {
            let role = match fields.required_string("role")?.as_str() {
                "system" | "developer" => "system",
                "user" => "user",
                "assistant" => "assistant",
                _ => {
                    let what = "must be `system`, `developer`, `user` or `assistant`";
                    return Err(ApiError::invalid(fields.name("role"), what));
                }
            };
            let param = fields.name("content");
            let content = content(&param, fields.required("content")?)?;
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let id = fields.required_string("call_id")?;
            let name = fields.required_string("name")?;
            let param = fields.name("arguments");
            let call = past_call(&id, &name, arguments(&param, fields.required("arguments")?)?);
            match messages.last_mut() {
                // Calls of one turn belong to one message.
                Some(last) if last["role"] == "assistant" => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                _ => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let id = fields.required_string("call_id")?;
            let param = fields.name("output");
            let output = content(&param, fields.required("output")?)?;
            let mut message = json!({"role": "tool", "content": output, "tool_call_id": id});
            name_result(messages, &mut message);
            messages.push(message);
        }
        other => {
            let why = Some(format!("`{other}` is"));
            return Err(ApiError::UnsupportedParameter { param: fields.name("type"), why });
        }
    }
    fields.finish()
}

fn content(param: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(_) => {
            let parts = items(param, value)?.into_iter();
            let texts: Vec<String> = parts
                .map(|(param, part)| text_part(Fields::of(param, part)?, &["input_text", "output_text"]))
                .collect::<Result<_, _>>()?;
            Ok(texts.join("\n"))
        }
        other => Err(wrong_type(param, "a string or an array of parts", &other)),
    }
}

/// Answers a conversation.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let lease = app.lease(&fields, &caller).await?;
    let request = Request::parse(&mut fields, &*lease.backend())?;
    let Request { model, conversation, parameters, is_streaming, echo } = request;
    let model = lease.answers_for(model);
    let reading = Reading { toolbox: conversation.toolbox.clone(), stops: Vec::new() };
    let prompt = Source::chat(conversation);
    let mut answers = Answers::new(lease.start(caller, &parameters, "input", prompt).await?, reading);
    let mut writer = Stream::new(&model, echo);
    if is_streaming {
        return Ok(events(answers, writer));
    }
    // A whole answer is what the last event of a stream holds.
    while let Some((choice, item)) = answers.next().await? {
        writer.item(choice, item, &answers.usage);
    }
    Ok(Json(writer.ended(&answers.usage)).into_response())
}

/// Writes the events and remembers what they add up to.
struct Stream {
    response: Value,
    output: Vec<Value>,
    /// The message being written: its text and tokens so far.
    message: Option<(String, Vec<TokenLogprob>)>,
    message_id: String,
    end: Option<End>,
    sequence: u64,
}

impl Stream {
    fn new(model: &str, echo: Value) -> Self {
        let mut response = json!({
            "id": new_id("resp"),
            "object": "response",
            "created_at": unix_now(),
            "status": "in_progress",
            "background": false,
            "error": null,
            "incomplete_details": null,
            "model": model,
            "output": [],
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "truncation": "disabled",
            "usage": null,
        });
        if let Value::Object(fields) = echo {
            for (name, value) in fields {
                response[name] = value;
            }
        }
        Self { response, output: Vec::new(), message: None, message_id: String::new(), end: None, sequence: 0 }
    }

    fn event(&mut self, kind: &'static str, mut fields: Value) -> Frame {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Frame::named(kind, &fields)
    }

    fn text(&mut self, text: &str, tokens: Vec<TokenLogprob>) -> Vec<Frame> {
        let mut frames = Vec::new();
        let index = self.output.len();
        if self.message.is_none() {
            self.message_id = new_id("msg");
            self.message = Some((String::new(), Vec::new()));
            let item = self.message_item("in_progress", None);
            frames.push(self.event("response.output_item.added", json!({"output_index": index, "item": item})));
            let part = part("", &[]);
            frames.push(self.at_part("response.content_part.added", index, json!({"part": part})));
        }
        let logprobs = tokens_json(&tokens);
        if let Some((all, seen)) = &mut self.message {
            all.push_str(text);
            seen.extend(tokens);
        }
        let delta = json!({"delta": text, "logprobs": logprobs});
        frames.push(self.at_part("response.output_text.delta", index, delta));
        frames
    }

    fn end_message(&mut self, status: &str) -> Vec<Frame> {
        let Some((text, tokens)) = self.message.take() else { return Vec::new() };
        let index = self.output.len();
        let part = part(&text, &tokens);
        let item = self.message_item(status, Some(&part));
        let done = json!({"text": text, "logprobs": tokens_json(&tokens)});
        let frames = vec![
            self.at_part("response.output_text.done", index, done),
            self.at_part("response.content_part.done", index, json!({"part": part})),
            self.event("response.output_item.done", json!({"output_index": index, "item": item})),
        ];
        self.output.push(item);
        frames
    }

    fn message_item(&self, status: &str, part: Option<&Value>) -> Value {
        let content: Vec<&Value> = part.into_iter().collect();
        json!({"id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    fn at_part(&mut self, kind: &'static str, index: usize, mut fields: Value) -> Frame {
        fields["item_id"] = self.message_id.as_str().into();
        fields["output_index"] = index.into();
        fields["content_index"] = 0.into();
        self.event(kind, fields)
    }

    fn call(&mut self, call: &Call) -> Vec<Frame> {
        let mut frames = self.end_message("completed");
        let (id, index, text) = (new_id("fc"), self.output.len(), call.arguments_text());
        let item = |status: &str, arguments: &str| {
            json!({"id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
                "arguments": arguments})
        };
        let (begun, done) = (item("in_progress", ""), item("completed", &text));
        frames.push(self.event("response.output_item.added", json!({"output_index": index, "item": begun})));
        let delta = json!({"item_id": id, "output_index": index, "delta": text});
        frames.push(self.event("response.function_call_arguments.delta", delta));
        let end = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": text});
        frames.push(self.event("response.function_call_arguments.done", end));
        frames.push(self.event("response.output_item.done", json!({"output_index": index, "item": done})));
        self.output.push(done);
        frames
    }

    /// The response as it stands at its end.
    fn ended(&mut self, usage: &Usage) -> Value {
        let mut response = self.response.clone();
        let is_cut = self.end.as_ref().is_some_and(|end| end.reason == Reason::Length);
        response["status"] = if is_cut { "incomplete" } else { "completed" }.into();
        if is_cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = self.output.clone().into();
        response["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        response
    }
}

fn part(text: &str, tokens: &[TokenLogprob]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": tokens_json(tokens)})
}

impl Writer for Stream {
    fn open(&mut self, _: &Usage) -> Vec<Frame> {
        ["response.created", "response.in_progress"]
            .map(|kind| {
                let response = self.response.clone();
                self.event(kind, json!({"response": response}))
            })
            .into()
    }

    fn item(&mut self, _: usize, item: Item, _: &Usage) -> Vec<Frame> {
        match item {
            Item::Text(text, tokens) => self.text(&text, tokens),
            Item::Call(call) => self.call(&call),
            Item::End(end) => {
                let mut frames = Vec::new();
                // An answer of nothing is still a message.
                if self.message.is_none() && self.output.is_empty() {
                    frames = self.text("", Vec::new());
                }
                let status = if end.reason == Reason::Length { "incomplete" } else { "completed" };
                self.end = Some(end);
                frames.extend(self.end_message(status));
                frames
            }
        }
    }

    fn close(&mut self, usage: &Usage) -> Vec<Frame> {
        let response = self.ended(usage);
        let kind = if response["status"] == "completed" { "response.completed" } else { "response.incomplete" };
        vec![self.event(kind, json!({"response": response}))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        let mut response = self.response.clone();
        let body = error.body();
        response["status"] = "failed".into();
        response["error"] = json!({"code": body["error"]["code"], "message": body["error"]["message"]});
        vec![self.event("response.failed", json!({"response": response}))]
    }
}
