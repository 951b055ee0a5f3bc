//! Messages as the JSON that the HTTP API reads.

use crate::{api::fields::Fields, error::ApiError, proto::v1};
use serde_json::{Map, Number, Value, json};
use std::time::Duration;

/// What `timeout` of the HTTP API can be, in seconds.
const TIMEOUT_S: (f64, f64) = (0.001, 86_400.0);

/// An object that grows by what is set.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn set<T: Into<Value>>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
    }

    fn list(&mut self, name: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.0.insert(name.to_owned(), values.into());
        }
    }
}

/// JSON has no infinity and no NaN: such a number becomes a text, which the field refuses by its name.
fn number(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number)
}

/// The fields of `POST /generate`, and `n` and `logprobs` of `POST /v1/completions`.
pub(super) fn generate(request: v1::GenerateRequest, deadline: Option<Duration>) -> Result<Fields, ApiError> {
    use v1::generate_request::Input;
    let mut object = Object::default();
    object.set("model", Some(request.model).filter(|model| !model.is_empty()));
    object.set(
        "prompt",
        request.input.map(|input| match input {
            Input::Prompt(text) => Value::String(text),
            Input::Tokens(tokens) => tokens.ids.into(),
        }),
    );
    let parameters = request.parameters.unwrap_or_default();
    object.set("logprobs", parameters.logprobs);
    add_parameters(&mut object, parameters, deadline);
    Fields::of("", object.0.into())
}

/// The fields of `POST /v1/chat/completions`.
pub(super) fn chat(request: v1::ChatRequest, deadline: Option<Duration>) -> Result<Fields, ApiError> {
    use v1::chat_request::ToolChoice;
    let mut object = Object::default();
    object.set("model", Some(request.model).filter(|model| !model.is_empty()));
    object.0.insert("messages".to_owned(), request.messages.into_iter().map(message).collect());
    object.list("tools", tools(request.tools)?);
    object.set(
        "tool_choice",
        request.tool_choice.map(|choice| match choice {
            ToolChoice::Mode(mode) => Value::String(mode),
            ToolChoice::Function(name) => json!({"type": "function", "function": {"name": name}}),
        }),
    );
    object.set("parallel_tool_calls", request.parallel_tool_calls);
    let arguments = request.chat_template_kwargs.map(|text| parse("chat_template_kwargs", &text)).transpose()?;
    object.set("chat_template_kwargs", arguments);
    let parameters = request.parameters.unwrap_or_default();
    object.set("logprobs", parameters.logprobs.map(|_| true));
    object.set("top_logprobs", parameters.logprobs);
    add_parameters(&mut object, parameters, deadline);
    Fields::of("", object.0.into())
}

/// The fields of `POST /v1/embeddings`.
pub(super) fn embed(request: v1::EmbedRequest) -> Result<Fields, ApiError> {
    let mut object = Object::default();
    object.set("model", Some(request.model).filter(|model| !model.is_empty()));
    object.list("input", request.input.into_iter().map(Value::String).collect());
    object.set("dimensions", request.dimensions);
    object.set("pooling", request.pooling);
    Fields::of("", object.0.into())
}

/// The fields of `POST /tokenize`.
pub(super) fn tokenize(request: v1::TokenizeRequest) -> Result<Fields, ApiError> {
    use v1::tokenize_request::Input;
    let mut object = Object::default();
    object.set("model", request.model);
    object.set("add_special_tokens", request.add_special_tokens);
    match request.input {
        None => {}
        Some(Input::Prompt(text)) => object.set("prompt", Some(text)),
        Some(Input::Conversation(conversation)) => {
            let messages: Vec<Value> = conversation.messages.into_iter().map(message).collect();
            object.set("messages", Some(messages));
            object.list("tools", tools(conversation.tools)?);
        }
    }
    Fields::of("", object.0.into())
}

/// The fields of `POST /detokenize`.
pub(super) fn detokenize(request: v1::DetokenizeRequest) -> Result<Fields, ApiError> {
    let mut object = Object::default();
    object.set("model", request.model);
    object.set("tokens", Some(request.tokens));
    Fields::of("", object.0.into())
}

/// All but `logprobs`, which endpoints write in different ways. The call's deadline is one more timeout.
fn add_parameters(object: &mut Object, parameters: v1::Parameters, deadline: Option<Duration>) {
    object.set("max_tokens", parameters.max_tokens);
    object.set("temperature", parameters.temperature.map(number));
    object.set("top_k", parameters.top_k);
    object.set("top_p", parameters.top_p.map(number));
    object.set("min_p", parameters.min_p.map(number));
    object.set("repetition_penalty", parameters.repetition_penalty.map(number));
    object.set("presence_penalty", parameters.presence_penalty.map(number));
    object.set("frequency_penalty", parameters.frequency_penalty.map(number));
    if !parameters.logit_bias.is_empty() {
        let bias: Map<_, _> =
            parameters.logit_bias.into_iter().map(|(token, bias)| (token.to_string(), number(bias))).collect();
        object.set("logit_bias", Some(bias));
    }
    object.set("seed", parameters.seed);
    object.list("stop", parameters.stop.into_iter().map(Value::String).collect());
    object.set("n", parameters.n);
    object.set("ignore_eos", parameters.ignore_eos);
    object.set("skip_special_tokens", parameters.skip_special_tokens);
    object.set("priority", parameters.priority);
    let deadline = deadline.map(|time| time.as_secs_f64().max(TIMEOUT_S.0)).filter(|&time| time <= TIMEOUT_S.1);
    object.set(
        "timeout",
        match (parameters.timeout, deadline) {
            // A timeout that is none is refused by its name.
            (Some(timeout), Some(deadline)) if timeout > deadline => Some(number(deadline)),
            (Some(timeout), _) => Some(number(timeout)),
            (None, deadline) => deadline.map(number),
        },
    );
    object.set("structured_outputs", parameters.structured_outputs.and_then(|outputs| outputs.form).map(form));
}

fn form(form: v1::structured_outputs::Form) -> Value {
    use v1::structured_outputs::Form;
    match form {
        Form::Json(schema) => json!({"json": schema}),
        Form::JsonObject(wanted) => json!({"json_object": wanted}),
        Form::Regex(regex) => json!({"regex": regex}),
        Form::Choice(choices) => json!({"choice": choices.texts}),
        Form::Grammar(grammar) => json!({"grammar": grammar}),
    }
}

fn message(message: v1::Message) -> Value {
    let mut object = Object::default();
    object.set("role", Some(message.role));
    let calls: Vec<Value> = message.tool_calls.into_iter().map(call).collect();
    // Calls may stand for themselves.
    object.set("content", Some(message.content).filter(|content| !content.is_empty() || calls.is_empty()));
    object.list("tool_calls", calls);
    object.set("tool_call_id", message.tool_call_id);
    object.set("name", message.name);
    object.set("reasoning_content", message.reasoning_content);
    object.0.into()
}

fn call(call: v1::ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

fn tools(tools: Vec<v1::Tool>) -> Result<Vec<Value>, ApiError> {
    let tool = |(index, tool): (usize, v1::Tool)| {
        let mut function = Object::default();
        function.set("name", Some(tool.name));
        function.set("description", tool.description);
        let param = format!("tools[{index}].parameters");
        function.set("parameters", tool.parameters.map(|text| parse(&param, &text)).transpose()?);
        function.set("strict", tool.strict);
        Ok(json!({"type": "function", "function": function.0}))
    };
    tools.into_iter().enumerate().map(tool).collect()
}

/// JSON in a text.
fn parse(param: &str, text: &str) -> Result<Value, ApiError> {
    serde_json::from_str(text).map_err(|error| ApiError::invalid(param, format!("is not JSON: {error}")))
}
