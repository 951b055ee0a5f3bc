//! Jinja chat templates, rendered as transformers renders them.
//!
//! Templates come with the model and are programs: they run without access to anything but their arguments, with a
//! bound on steps, nesting and output. The differences between Jinja in Python and here that templates in use can see
//! are evened out in this module: how values print, `tojson`, string methods, the `generation` tag.

mod clock;
mod environment;
mod generation;
mod json;
mod methods;
mod python;

use crate::ModelError;
use crate::tokenizer::TokenText;
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value};
use std::error::Error as _;

/// One message of a chat; kept as JSON because templates may look at any field (`tool_calls`, `name` …).
pub type Message = Value;

/// Largest prompt a template may write. Far above any context length, far below the memory of a small device.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and the like: visible to the template as strings.
    special_tokens: Map<String, Value>,
    has_tool_use: bool,
}

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are visible to it as strings.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, ModelError> {
        let named = [("bos_token", bos_token), ("eos_token", eos_token)];
        let tokens = named.into_iter().filter_map(|(name, token)| Some((name.to_owned(), Value::from(token?))));
        Self::compile(source, None, tokens.collect())
    }

    /// From the text of `tokenizer_config.json` and, if present, `chat_template.jinja`, which wins. `None` if neither
    /// has one. Of a list of named templates `default` is used, and `tool_use` when tools are given.
    pub fn from_hf(config: Option<&[u8]>, jinja: Option<&str>) -> Result<Option<Self>, ModelError> {
        let config: Map<String, Value> = match config {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| ModelError::Template(format!("tokenizer_config.json: {error}")))?,
            None => Map::new(),
        };
        let special_tokens = config
            .iter()
            .filter(|(name, _)| name.ends_with("_token"))
            .filter_map(|(name, value)| {
                let token: TokenText = serde_json::from_value(value.clone()).ok()?;
                Some((name.clone(), Value::from(token.as_str())))
            })
            .collect();
        if let Some(source) = jinja {
            return Self::compile(source, None, special_tokens).map(Some);
        }
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Self::compile(source, None, special_tokens).map(Some),
            Some(Value::Array(named)) => {
                let source = |wanted: &str| {
                    named.iter().find(|entry| entry["name"] == wanted).and_then(|entry| entry["template"].as_str())
                };
                let default = source(DEFAULT).ok_or_else(|| {
                    let names: Vec<_> = named.iter().filter_map(|entry| entry["name"].as_str()).collect();
                    ModelError::Template(format!("none of the templates ({}) is the `default`", names.join(", ")))
                })?;
                Self::compile(default, source(TOOL_USE), special_tokens).map(Some)
            }
            Some(_) => Err(ModelError::Template("`chat_template` is neither a string nor a list of templates".into())),
        }
    }

    fn compile(source: &str, tool_use: Option<&str>, special_tokens: Map<String, Value>) -> Result<Self, ModelError> {
        let mut environment = environment::new();
        for (name, source) in [(DEFAULT, Some(source)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            // Jinja reads every line ending as a line feed.
            let source = generation::as_plain_blocks(&source.replace("\r\n", "\n").replace('\r', "\n"));
            environment.add_template_owned(name, source).map_err(|error| ModelError::Template(describe(&error)))?;
        }
        Ok(Self { environment, source: source.to_owned(), special_tokens, has_tool_use: tool_use.is_some() })
    }

    /// Renders `messages`; `arguments` are further variables (`tools`, `enable_thinking`, …).
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        arguments: &Map<String, Value>,
    ) -> Result<String, ModelError> {
        let mut variables = self.special_tokens.clone();
        // Defined though empty, as templates that ask `tools is defined` expect.
        variables.insert("tools".into(), Value::Null);
        variables.insert("documents".into(), Value::Null);
        variables.extend(arguments.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.insert("messages".into(), messages.iter().map(with_reasoning).collect());
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let has_tools = !variables["tools"].is_null();
        let name = if self.has_tool_use && has_tools { TOOL_USE } else { DEFAULT };
        let mut output = LimitedOutput(Vec::new());
        self.environment
            .get_template(name)
            .and_then(|template| {
                template.render_captured_to(minijinja::Value::from(Serde(&variables)), &mut output).map(|_| ())
            })
            .map_err(|error| ModelError::Template(describe(&error)))?;
        String::from_utf8(output.0).map_err(|error| ModelError::Template(error.to_string()))
    }

    /// The source, as exported.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// A message with its reasoning under the standard name and under the one that some templates read, as transformers
/// passes it on.
fn with_reasoning(message: &Message) -> Message {
    let Some(fields) = message.as_object() else { return message.clone() };
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null())) else {
        return message.clone();
    };
    let mut aliased = Map::new();
    aliased.insert("thinking".into(), reasoning.clone());
    aliased.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    aliased.insert("reasoning_content".into(), reasoning.clone());
    Value::Object(aliased)
}

/// What a template refused by `raise_exception`, word for word, or what went wrong in it and where.
fn describe(error: &minijinja::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<environment::Raised>() {
            return raised.to_string();
        }
        cause = inner.source();
    }
    let mut text = error.kind().to_string();
    if let Some(detail) = error.detail() {
        text = format!("{text}: {detail}");
    }
    match error.line() {
        Some(line) => format!("{text} (line {line})"),
        None => text,
    }
}

/// Collects output up to the limit.
struct LimitedOutput(Vec<u8>);

impl std::io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other("the template writes too much"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
