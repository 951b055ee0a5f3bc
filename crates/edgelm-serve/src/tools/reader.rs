//! Finds calls in an answer that arrives in pieces.

use super::{Call, Form, Toolbox, new_id};
use serde_json::{Map, Value};

/// Something found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Call(Call),
}

/// Splits an answer into text and calls. Text that may be the beginning of a mark is held back; what turns out not to
/// be a call after all is text, word for word.
pub(crate) struct Reader {
    form: Form,
    names: Vec<String>,
    /// Not given out yet. Inside a call, from its mark on.
    held: String,
    is_inside: bool,
    /// Something other than spaces was seen.
    is_begun: bool,
    has_calls: bool,
    /// Spaces that stand between calls, or before the first one: only text that follows makes them part of the answer.
    spaces: String,
}

/// What stands at the beginning of a text that should be a call.
enum Body {
    Calls(Vec<Call>, usize),
    Incomplete,
    Wrong,
}

impl Reader {
    pub(crate) fn new(toolbox: &Toolbox) -> Self {
        Self {
            form: toolbox.form,
            names: toolbox.allowed.iter().map(|tool| tool.name.clone()).collect(),
            held: String::new(),
            is_inside: false,
            is_begun: false,
            has_calls: false,
            spaces: String::new(),
        }
    }

    /// Adds text; returns what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts, false) {}
        parts
    }

    /// The rest, when no more text comes.
    pub(crate) fn finish(mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        while self.step(&mut parts, true) {}
        let rest = std::mem::take(&mut self.held);
        self.text(&mut parts, &rest);
        if self.is_begun && !self.has_calls && !self.spaces.is_empty() {
            parts.push(Part::Text(self.spaces));
        }
        parts
    }

    /// One step; false where more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>, is_last: bool) -> bool {
        if self.is_inside {
            let inner = &self.held[self.form.open.len().min(self.held.len())..];
            return match self.body(inner, is_last) {
                Body::Calls(calls, length) => {
                    self.held.drain(..self.form.open.len() + length);
                    self.is_inside = false;
                    self.spaces.clear();
                    self.has_calls = true;
                    parts.extend(calls.into_iter().map(Part::Call));
                    true
                }
                Body::Incomplete => false,
                Body::Wrong => {
                    // The mark is text; what follows it may hold another.
                    self.is_inside = false;
                    let end = match self.form.open.len() {
                        0 => self.held.len(),
                        length => length,
                    };
                    let text: String = self.held.drain(..end).collect();
                    self.text(parts, &text);
                    !self.held.is_empty()
                }
            };
        }
        if self.form.open.is_empty() {
            return self.step_bare(parts);
        }
        if let Some(at) = self.held.find(self.form.open) {
            let before: String = self.held.drain(..at).collect();
            self.text(parts, &before);
            self.is_inside = true;
            return true;
        }
        let certain = self.held.len() - held_back(&self.held, self.form.open);
        let text: String = self.held.drain(..certain).collect();
        self.text(parts, &text);
        false
    }

    /// Without a mark, only an answer that begins with a call holds calls.
    fn step_bare(&mut self, parts: &mut Vec<Part>) -> bool {
        const PYTHON_TAG: &str = "<|python_tag|>";
        let start = self.held.trim_start();
        if self.is_begun {
            let text = std::mem::take(&mut self.held);
            self.text(parts, &text);
            return false;
        }
        if start.is_empty() || (start.len() < PYTHON_TAG.len() && PYTHON_TAG.starts_with(start)) {
            return false;
        }
        let start = start.strip_prefix(PYTHON_TAG).unwrap_or(start);
        // Between several calls.
        let start = start.strip_prefix(';').unwrap_or(start).trim_start();
        if start.is_empty() {
            return false;
        }
        if start.starts_with('{') {
            self.held = start.to_owned();
            self.is_inside = true;
            return true;
        }
        self.is_begun = true;
        true
    }

    /// Gives text out, except for spaces that nothing has followed yet.
    fn text(&mut self, parts: &mut Vec<Part>, text: &str) {
        let visible = text.trim_end().len();
        if visible == 0 {
            self.spaces.push_str(text);
            return;
        }
        self.is_begun = true;
        let text_with_spaces = format!("{}{}", std::mem::take(&mut self.spaces), &text[..visible]);
        self.spaces.push_str(&text[visible..]);
        parts.push(Part::Text(text_with_spaces));
    }

    fn body(&self, inner: &str, is_last: bool) -> Body {
        let start = inner.len() - inner.trim_start().len();
        let (mut calls, mut at) = (Vec::new(), start);
        if let Some(separator) = self.form.separator {
            let Some(end) = inner.find(separator) else {
                let is_wrong = is_last || inner.contains(['{', '\n']);
                return if is_wrong { Body::Wrong } else { Body::Incomplete };
            };
            let name = inner[..end].trim();
            return match json_at(&inner[end + separator.len()..]) {
                Ok(Some((Value::Object(arguments), length))) if self.names.iter().any(|known| known == name) => {
                    calls.push(Call { id: new_id(), name: name.to_owned(), arguments });
                    Body::Calls(calls, end + separator.len() + length)
                }
                Ok(None) if !is_last => Body::Incomplete,
                _ => Body::Wrong,
            };
        }
        let (value, length) = match json_at(&inner[at..]) {
            Ok(Some(found)) => found,
            Ok(None) if !is_last => return Body::Incomplete,
            _ => return Body::Wrong,
        };
        at += length;
        let values = match value {
            Value::Array(values) if self.form.is_list => values,
            value => vec![value],
        };
        for value in values {
            match self.call(value) {
                Some(call) => calls.push(call),
                None => return Body::Wrong,
            }
        }
        let rest = &inner[at..];
        let close = self.form.close;
        if close.is_empty() {
            return Body::Calls(calls, at);
        }
        let after_space = rest.trim_start();
        match after_space.starts_with(close) {
            true => Body::Calls(calls, inner.len() - after_space.len() + close.len()),
            // A call is complete without the mark that ends it: models forget it, or it is their end of sequence.
            false if is_last => Body::Calls(calls, at),
            false if close.starts_with(after_space) => Body::Incomplete,
            false => Body::Calls(calls, at),
        }
    }

    fn call(&self, value: Value) -> Option<Call> {
        let Value::Object(mut fields) = value else { return None };
        let name = fields.shift_remove("name")?.as_str()?.to_owned();
        let arguments = fields.shift_remove("arguments").or_else(|| fields.shift_remove("parameters"));
        let arguments = match arguments {
            Some(Value::Object(arguments)) => arguments,
            // Some models write the arguments as text, as OpenAI's API does.
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return None,
        };
        self.names.contains(&name).then(|| Call { id: new_id(), name, arguments })
    }
}

/// How much of the end of `text` may be the beginning of `mark`.
pub(crate) fn held_back(text: &str, mark: &str) -> usize {
    let starts = text.char_indices().map(|(at, _)| at);
    starts.filter(|&at| mark.starts_with(&text[at..])).map(|at| text.len() - at).next().unwrap_or(0)
}

/// The JSON value that `text` begins with and its length; `None` where it is not complete yet.
fn json_at(text: &str) -> Result<Option<(Value, usize)>, serde_json::Error> {
    // A number or a word could go on, but only objects and arrays are looked for.
    if !text.contains(['}', ']']) && text.trim_start().starts_with(['{', '[']) {
        return Ok(None);
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some((value, values.byte_offset()))),
        Some(Err(error)) if error.is_eof() => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{Choice, Tool};
    use serde_json::json;

    /// Text and calls `name(arguments)`, whatever the pieces.
    fn read(template: &str, answer: &str) -> String {
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            description: None,
            parameters: json!({"type": "object"}),
            strict: false,
        };
        let toolbox = Toolbox {
            tools: [tool("f"), tool("g")].into(),
            allowed: [tool("f"), tool("g")].into(),
            choice: Choice::Auto,
            parallel: true,
            form: Form::of_template(template).expect("a known form"),
        };
        let mut results = Vec::new();
        for size in [1, 3, answer.len().max(1)] {
            let mut reader = Reader::new(&toolbox);
            let mut parts = Vec::new();
            let characters: Vec<char> = answer.chars().collect();
            for piece in characters.chunks(size) {
                parts.extend(reader.push(&piece.iter().collect::<String>()));
            }
            parts.extend(reader.finish());
            let text: String = parts
                .into_iter()
                .map(|part| match part {
                    Part::Text(text) => text,
                    Part::Call(call) => format!("[{}({})]", call.name, call.arguments_text()),
                })
                .collect();
            results.push(text);
        }
        assert!(results.iter().all(|result| *result == results[0]), "pieces matter: {results:?}");
        results.swap_remove(0)
    }

    #[test]
    fn hermes() {
        let read = |answer| read("tools <tool_call>", answer);
        assert_eq!(read("Just text."), "Just text.");
        assert_eq!(read("a < b <tool"), "a < b <tool");
        assert_eq!(read("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>"), "[f({\"x\":1})]");
        assert_eq!(
            read(
                "Let me see.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"s\": \"</tool_call>\"}}\n</tool_call>\n"
            ),
            "Let me see.[f({})][g({\"s\":\"</tool_call>\"})]"
        );
        assert_eq!(read("<tool_call>{\"name\": \"f\", \"arguments\": {}}"), "[f({})]", "cut after the JSON");
        let broken = "<tool_call>{\"name\": \"f\", \"argu";
        assert_eq!(read(broken), broken);
        let unknown = "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>";
        assert_eq!(read(unknown), unknown);
        let nonsense = "<tool_call>call f!</tool_call> é";
        assert_eq!(read(nonsense), nonsense);
        assert_eq!(read("<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":2}\"}</tool_call>"), "[f({\"a\":2})]");
    }

    #[test]
    fn mistral_and_granite() {
        let list = "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {\"x\": [1]}}]";
        assert_eq!(read("tools [TOOL_CALLS]", &format!("[TOOL_CALLS] {list}")), "[f({})][g({\"x\":[1]})]");
        assert_eq!(read("tools <|tool_call|>", &format!("<|tool_call|>{list}")), "[f({})][g({\"x\":[1]})]");
        assert_eq!(
            read("tools <|tool_call|><|/tool_call|>", &format!("<|tool_call|>{list}<|/tool_call|>")),
            "[f({})][g({\"x\":[1]})]"
        );
        assert_eq!(
            read("tools [TOOL_CALLS][ARGS]", "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[ARGS]{}"),
            "[f({\"x\":1})][g({})]"
        );
    }

    #[test]
    fn llama() {
        let read = |answer| read("tools <|python_tag|>", answer);
        assert_eq!(read("{\"name\": \"f\", \"parameters\": {\"x\": 1}}"), "[f({\"x\":1})]");
        assert_eq!(
            read("<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}"),
            "[f({})][g({})]"
        );
        assert_eq!(read("The set {1, 2}"), "The set {1, 2}");
        assert_eq!(read("{\"answer\": 42}"), "{\"answer\": 42}");
    }
}
