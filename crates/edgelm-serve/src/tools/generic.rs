//! Tools for models whose template has no place for them: described in the conversation itself, in Hermes' words.

use super::Tool;
use edgelm_model::Message;
use serde_json::{Value, json};

const BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with \
function signatures within <tools></tools> XML tags:\n<tools>";

const AFTER: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

/// Puts the description into the system message, or, because not every template has one, before the first message.
pub(super) fn introduce(tools: &[Tool], messages: &mut Vec<Message>) {
    rewrite(messages);
    let mut text = BEFORE.to_owned();
    for tool in tools {
        text.push('\n');
        text.push_str(&tool.definition().to_string());
    }
    text.push_str(AFTER);
    match messages.first_mut() {
        Some(first) => {
            let old = first["content"].as_str().unwrap_or_default();
            let both = if first["role"] == "system" { format!("{old}\n\n{text}") } else { format!("{text}\n\n{old}") };
            first["content"] = both.into();
        }
        None => messages.push(json!({"role": "user", "content": text})),
    }
}

/// Calls become text of the assistant, results become messages of the user.
pub(super) fn rewrite(messages: &mut Vec<Message>) {
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for mut message in messages.drain(..) {
        let is_result = message["role"] == "tool";
        if is_result {
            let text =
                format!("<tool_response>\n{}\n</tool_response>", message["content"].as_str().unwrap_or_default());
            match out.last_mut() {
                Some(last) if after_result => {
                    last["content"] = format!("{}\n{text}", last["content"].as_str().unwrap_or_default()).into();
                }
                _ => out.push(json!({"role": "user", "content": text})),
            }
        } else {
            let calls = message.as_object_mut().and_then(|fields| fields.shift_remove("tool_calls"));
            if let Some(Value::Array(calls)) = calls {
                let mut lines = vec![message["content"].as_str().unwrap_or_default().to_owned()];
                lines.retain(|text| !text.is_empty());
                lines.extend(calls.iter().map(|call| {
                    let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
                    format!("<tool_call>\n{call}\n</tool_call>")
                }));
                message["content"] = lines.join("\n").into();
            }
            out.push(message);
        }
        after_result = is_result;
    }
    *messages = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_becomes_text() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
        let mut messages = vec![
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": "1", "tool_call_id": "1"}),
            json!({"role": "tool", "content": "2", "tool_call_id": "2"}),
        ];
        let tool = Tool { name: "f".into(), description: None, parameters: json!({"type": "object"}), strict: false };
        introduce(&[tool], &mut messages);
        assert_eq!(messages.len(), 3);
        let text = messages[0]["content"].as_str().unwrap_or_default();
        assert!(text.starts_with("# Tools") && text.contains("\"name\":\"f\"") && text.ends_with("\n\nq"));
        assert_eq!(
            messages[1],
            json!({"role": "assistant", "content": "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>"})
        );
        assert_eq!(
            messages[2],
            json!({"role": "user",
                "content": "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"})
        );
    }
}
