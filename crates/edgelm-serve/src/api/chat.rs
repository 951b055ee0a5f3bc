//! `POST /v1/chat/completions`.

use super::{
    App, Parameters, Reply,
    fields::{Fields, wrong_type},
    reply::{answer, finish_reason, finite},
};
use crate::{
    error::ApiError,
    service::MaxTokens,
    worker::{StopReason, TokenLogprob},
};
use axum::{extract::State, response::Response};
use edgelm_model::Message;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Instant};

const MAX_TOP_LOGPROBS: i64 = 20;

/// Answers a conversation.
pub(super) async fn create(State(app): State<Arc<App>>, mut fields: Fields) -> Result<Response, ApiError> {
    let received = Instant::now();
    let service = app.service()?;
    let model = fields.required("model")?;
    let model = model.as_str().ok_or_else(|| wrong_type("model", "a string", &model))?;
    service.check_model(model)?;
    let messages = messages(fields.required("messages")?)?;
    let logprobs = logprobs(&mut fields)?;
    let parameters = Parameters::parse(fields, service.backend.defaults(), MaxTokens::Rest, logprobs)?;
    let run = service
        .start(&parameters, "messages", move |backend| backend.chat_prompt(&messages, &Map::new()), received)
        .await?;
    answer(run, model, ChatReply, parameters.streaming).await
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

/// The messages as templates expect them: `content` always one string.
fn messages(value: Value) -> Result<Vec<Message>, ApiError> {
    let Value::Array(messages) = value else { return Err(wrong_type("messages", "an array", &value)) };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "at least one message is needed"));
    }
    messages.into_iter().enumerate().map(|(index, value)| message(&format!("messages[{index}]"), value)).collect()
}

fn message(param: &str, value: Value) -> Result<Message, ApiError> {
    let Value::Object(mut fields) = value else { return Err(wrong_type(param, "an object", &value)) };
    let mut take = |name: &str| fields.shift_remove(name).filter(|value| !value.is_null());
    let missing = |name: &str| ApiError::MissingParameter { param: format!("{param}.{name}") };
    let role = role(&format!("{param}.role"), &take("role").ok_or_else(|| missing("role"))?)?;
    let content = content(&format!("{param}.content"), take("content").ok_or_else(|| missing("content"))?)?;
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), content.into());
    match take("name") {
        None => {}
        Some(Value::String(name)) => {
            message.insert("name".to_owned(), name.into());
        }
        Some(other) => return Err(wrong_type(&format!("{param}.name"), "a string", &other)),
    }
    for (name, value) in fields {
        let param = format!("{param}.{name}");
        match name.as_str() {
            _ if value.is_null() => {}
            "tool_calls" if value.as_array().is_some_and(Vec::is_empty) => {}
            "tool_calls" | "tool_call_id" | "function_call" | "refusal" | "audio" => {
                return Err(ApiError::UnsupportedParameter { param, why: None });
            }
            // Part of what openai-python sends back when an answer is put into the next request.
            "annotations" if value.as_array().is_some_and(Vec::is_empty) => {}
            _ => return Err(ApiError::UnknownParameter { param }),
        }
    }
    Ok(Value::Object(message))
}

fn role(param: &str, value: &Value) -> Result<&'static str, ApiError> {
    match value.as_str().ok_or_else(|| wrong_type(param, "a string", value))? {
        // OpenAI's newer word for the same; models' templates only know the older.
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        role @ ("tool" | "function") => {
            Err(ApiError::UnsupportedParameter { param: param.to_owned(), why: Some(format!("role `{role}`")) })
        }
        _ => Err(ApiError::invalid(param, "must be `system`, `developer`, `user` or `assistant`")),
    }
}

/// A string, or text parts, which are put on lines of their own.
fn content(param: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(param, "a string or an array of parts", &other)),
    };
    let texts: Vec<String> = parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| text_part(&format!("{param}[{index}]"), part))
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn text_part(param: &str, value: Value) -> Result<String, ApiError> {
    let Value::Object(mut part) = value else { return Err(wrong_type(param, "an object", &value)) };
    let kind = part.shift_remove("type");
    if kind.as_ref().and_then(Value::as_str) != Some("text") {
        let why = Some("only parts of type `text` are".to_owned());
        return Err(ApiError::UnsupportedParameter { param: format!("{param}.type"), why });
    }
    let text = match part.shift_remove("text") {
        Some(Value::String(text)) => text,
        Some(other) => return Err(wrong_type(&format!("{param}.text"), "a string", &other)),
        None => return Err(ApiError::MissingParameter { param: format!("{param}.text") }),
    };
    match part.keys().next() {
        None => Ok(text),
        Some(name) => Err(ApiError::UnknownParameter { param: format!("{param}.{name}") }),
    }
}

struct ChatReply;

impl Reply for ChatReply {
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn choice(&self, index: usize, text: &str, logprobs: &[TokenLogprob], reason: StopReason) -> Value {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": logprobs_json(logprobs),
            "finish_reason": finish_reason(reason),
        })
    }

    fn opening(&mut self, index: usize) -> Option<Value> {
        Some(chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, Value::Null))
    }

    fn delta(&mut self, index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value {
        chunk(index, json!({"content": text}), logprobs_json(logprob), Value::Null)
    }

    fn closing(&self, index: usize, reason: StopReason) -> Value {
        chunk(index, json!({}), Value::Null, finish_reason(reason).into())
    }
}

fn chunk(index: usize, delta: Value, logprobs: Value, finish_reason: Value) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
}

/// Null where none were asked for.
fn logprobs_json<'a>(tokens: impl IntoIterator<Item = &'a TokenLogprob>) -> Value {
    let content: Vec<Value> = tokens
        .into_iter()
        .map(|token| {
            let mut entry = entry(&token.token, token.logprob);
            entry["top_logprobs"] = token.top.iter().map(|(token, logprob)| self::entry(token, *logprob)).collect();
            entry
        })
        .collect();
    if content.is_empty() { Value::Null } else { json!({"content": content, "refusal": null}) }
}

/// `bytes` is null for a token that is not whole characters.
fn entry(token: &str, logprob: f32) -> Value {
    let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then_some(token.as_bytes());
    json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
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
    fn what_is_refused_is_named() {
        let case = |value, param: &str, code: &str| assert_eq!(refusal(value), (param.to_owned(), code.to_owned()));
        case(json!("hi"), "messages", "invalid_value");
        case(json!([]), "messages", "invalid_value");
        case(json!([1]), "messages[0]", "invalid_value");
        case(json!([{"content": "x"}]), "messages[0].role", "missing_required_parameter");
        case(json!([{"role": "user", "content": null}]), "messages[0].content", "missing_required_parameter");
        case(json!([{"role": "king", "content": "x"}]), "messages[0].role", "invalid_value");
        case(json!([{"role": "tool", "content": "x"}]), "messages[0].role", "unsupported_parameter");
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
        case(
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [{}]}]),
            "messages[1].tool_calls",
            "unsupported_parameter",
        );
        case(json!([{"role": "user", "content": "x", "mood": 1}]), "messages[0].mood", "unknown_parameter");
    }
}
