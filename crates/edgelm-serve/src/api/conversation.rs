//! Conversations as OpenAI's chat API writes them, as chat templates read them.

use super::fields::{Fields, is_empty, items, wrong_type};
use crate::{
    backend::Backend,
    error::ApiError,
    tools::{self, Toolbox},
};
use edgelm_engine::EngineError;
use edgelm_model::Message;
use serde_json::{Map, Value, json};

/// What a prompt is made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    /// Further variables of the template.
    pub(crate) arguments: Map<String, Value>,
    pub(crate) toolbox: Option<Toolbox>,
}

impl Conversation {
    /// The prompt's tokens.
    pub(crate) fn prompt(mut self, backend: &dyn Backend) -> Result<Vec<u32>, EngineError> {
        match &self.toolbox {
            Some(toolbox) => toolbox.introduce(&mut self.messages, &mut self.arguments),
            None => tools::rewrite_history(backend, &mut self.messages),
        }
        backend.chat_prompt(&self.messages, &self.arguments)
    }
}

/// The messages as templates expect them: `content` always one string, arguments of calls as objects.
pub(super) fn messages(value: Value) -> Result<Vec<Message>, ApiError> {
    let values = items("messages", value)?;
    if values.is_empty() {
        return Err(ApiError::invalid("messages", "at least one message is needed"));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(values.len());
    for (param, value) in values {
        let mut message = message(Fields::of(param, value)?)?;
        name_result(&messages, &mut message);
        messages.push(message);
    }
    Ok(messages)
}

/// Some templates want the function's name beside a result; clients only send the id of the call.
pub(super) fn name_result(before: &[Message], message: &mut Message) {
    if message["role"] != "tool" || !message["name"].is_null() {
        return;
    }
    let calls = before.iter().rev().filter_map(|message| message["tool_calls"].as_array()).flatten();
    let call = calls.into_iter().find(|call| call["id"] == message["tool_call_id"]);
    if let Some(call) = call {
        message["name"] = call["function"]["name"].clone();
    }
}

fn message(mut fields: Fields) -> Result<Message, ApiError> {
    let role = role(&fields.name("role"), &fields.required("role")?)?;
    let content = fields.take("content");
    let mut message = json!({"role": role});
    let content_param = fields.name("content");
    let missing = || ApiError::MissingParameter { param: content_param.clone() };
    let calls = if role == "assistant" { calls(&mut fields)? } else { None };
    message["content"] = match content {
        Some(content) => text(&content_param, content)?.into(),
        // Only calls may stand for themselves.
        None if calls.is_some() => "".into(),
        None => return Err(missing()),
    };
    if let Some(calls) = calls {
        message["tool_calls"] = calls;
    }
    if role == "tool" {
        message["tool_call_id"] = fields.required_string("tool_call_id")?.into();
    }
    if let Some(name) = fields.string("name")? {
        message["name"] = name.into();
    }
    if let Some(reasoning) = fields.string("reasoning_content")? {
        message["reasoning_content"] = reasoning.into();
    }
    // `annotations` and `refusal` are part of what openai-python sends back when an answer is put into the next request.
    fields.finish_but(&[
        ("annotations", is_empty),
        ("audio", super::fields::never),
        ("function_call", super::fields::never),
        ("refusal", super::fields::never),
        ("tool_calls", is_empty),
    ])?;
    Ok(message)
}

fn role(param: &str, value: &Value) -> Result<&'static str, ApiError> {
    match value.as_str().ok_or_else(|| wrong_type(param, "a string", value))? {
        // OpenAI's newer word for the same; models' templates only know the older.
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" => Ok("tool"),
        "function" => {
            let why = Some("role `function` is; `tool` took its place".to_owned());
            Err(ApiError::UnsupportedParameter { param: param.to_owned(), why })
        }
        _ => Err(ApiError::invalid(param, "must be `system`, `developer`, `user`, `assistant` or `tool`")),
    }
}

/// A string, or text parts, which are put on lines of their own.
pub(super) fn text(param: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(_) => items(param, value)?,
        other => return Err(wrong_type(param, "a string or an array of parts", &other)),
    };
    let texts: Vec<String> = parts
        .into_iter()
        .map(|(param, part)| text_part(Fields::of(param, part)?, &["text"]))
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// A part that is text. Images, sounds and files are refused by name.
pub(super) fn text_part(mut part: Fields, kinds: &[&str]) -> Result<String, ApiError> {
    let kind = part.required_string("type")?;
    if !kinds.contains(&kind.as_str()) {
        let why = Some(format!("`{kind}` is; only parts of type `{}` are taken", kinds.join("` and `")));
        return Err(ApiError::UnsupportedParameter { param: part.name("type"), why });
    }
    let text = part.required_string("text")?;
    part.finish_but(&[("annotations", is_empty), ("logprobs", is_empty), ("citations", is_empty)])?;
    Ok(text)
}

/// An assistant's earlier calls.
fn calls(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let Some(values) = fields.items("tool_calls")? else { return Ok(None) };
    if values.is_empty() {
        return Ok(None);
    }
    let call = |(param, value)| {
        let mut call = Fields::of(param, value)?;
        call_kind(&mut call)?;
        let id = call.required_string("id")?;
        let missing = ApiError::MissingParameter { param: call.name("function") };
        let mut function = call.inner("function")?.ok_or(missing)?;
        let name = function.required_string("name")?;
        let param = function.name("arguments");
        let arguments = arguments(&param, function.required("arguments")?)?;
        function.finish()?;
        call.finish_but(&[("index", |value| value.is_u64())])?;
        Ok(past_call(&id, &name, arguments))
    };
    values.into_iter().map(call).collect::<Result<Vec<_>, _>>().map(|calls| Some(calls.into()))
}

/// `type`: only functions are called.
pub(super) fn call_kind(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.string("type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(other) => {
            let why = Some(format!("`{other}` is; only functions can be called"));
            Err(ApiError::UnsupportedParameter { param: fields.name("type"), why })
        }
    }
}

/// A call that was made, as templates read it.
pub(super) fn past_call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// Arguments, which OpenAI sends as JSON text.
pub(super) fn arguments(param: &str, value: Value) -> Result<Value, ApiError> {
    match value {
        Value::Object(_) => Ok(value),
        Value::String(text) if text.is_empty() => Ok(json!({})),
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => Ok(fields.into()),
            _ => Err(ApiError::invalid(param, "is not the text of a JSON object")),
        },
        other => Err(wrong_type(param, "the text of a JSON object", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(value: Value) -> (String, String) {
        let error = messages(value).expect_err("refused").body();
        let text = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        (text("param"), text("code"))
    }

    #[test]
    fn contents_become_one_string() {
        let parsed = messages(json!([
            {"role": "developer", "content": "be brief", "name": "ops"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "annotations": []},
        ]))
        .expect("valid");
        assert_eq!(
            Value::from(parsed),
            json!([
                {"role": "system", "content": "be brief", "name": "ops"},
                {"role": "user", "content": "a\nb"},
                {"role": "assistant", "content": "c"},
            ])
        );
    }

    #[test]
    fn calls_and_results_reach_the_template() {
        let parsed = messages(json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]))
        .expect("valid");
        assert_eq!(
            parsed[1]["tool_calls"],
            json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
        );
        assert_eq!(parsed[2], json!({"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"}));
    }

    #[test]
    fn what_is_refused_is_named() {
        let case = |value, param: &str, code: &str| assert_eq!(refusal(value), (param.to_owned(), code.to_owned()));
        case(json!("hi"), "messages", "invalid_value");
        case(json!([]), "messages", "invalid_value");
        case(json!([1]), "messages[0]", "invalid_value");
        case(json!([{"content": "x"}]), "messages[0].role", "missing_required_parameter");
        case(json!([{"role": "user", "content": null}]), "messages[0].content", "missing_required_parameter");
        case(json!([{"role": "king", "content": "x"}]), "messages[0].role", "invalid_value");
        case(json!([{"role": "function", "content": "x"}]), "messages[0].role", "unsupported_parameter");
        case(json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id", "missing_required_parameter");
        case(json!([{"role": "user", "content": 1}]), "messages[0].content", "invalid_value");
        case(
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0].type",
            "unsupported_parameter",
        );
        case(
            json!([{"role": "user", "content": [{"type": "text", "text": 5}]}]),
            "messages[0].content[0].text",
            "invalid_value",
        );
        let call = |call: Value| json!([{"role": "assistant", "content": "y", "tool_calls": [call]}]);
        case(call(json!({})), "messages[0].tool_calls[0].id", "missing_required_parameter");
        case(
            call(json!({"id": "1", "function": {"name": "f", "arguments": "{"}})),
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        );
        case(
            call(json!({"id": "1", "type": "custom", "custom": {}})),
            "messages[0].tool_calls[0].type",
            "unsupported_parameter",
        );
        case(
            json!([{"role": "user", "content": "x", "tool_calls": [{}]}]),
            "messages[0].tool_calls",
            "unsupported_parameter",
        );
        case(json!([{"role": "user", "content": "x", "mood": 1}]), "messages[0].mood", "unknown_parameter");
    }
}
