//! Jinja chat templates, rendered as transformers renders them.

use crate::ModelError;

/// One message of a chat; kept as JSON because templates may look at any field (`tool_calls`, `name` …).
pub type Message = serde_json::Value;

/// A compiled template.
pub struct ChatTemplate {
    _private: (),
}

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are visible to it as strings.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, ModelError> {
        let _ = (source, bos_token, eos_token);
        todo!()
    }
    /// From the text of `tokenizer_config.json` and, if present, `chat_template.jinja`. `None` if neither has one.
    pub fn from_hf(config: Option<&[u8]>, jinja: Option<&str>) -> Result<Option<Self>, ModelError> {
        let _ = (config, jinja);
        todo!()
    }
    /// Renders `messages`; `arguments` are further variables (`tools`, `enable_thinking`, …).
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        arguments: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, ModelError> {
        let _ = (messages, add_generation_prompt, arguments);
        todo!()
    }
    /// The source, as exported.
    pub fn source(&self) -> &str {
        todo!()
    }
}
