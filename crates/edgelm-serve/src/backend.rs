//! What the server needs from a model. Tests put a fake behind it.

use edgelm_engine::{EngineError, GenerateOptions, Generation, Model, Piece};
use edgelm_model::{GenerationConfig, Message};
use std::{ops::ControlFlow, sync::Arc};

/// A model that answers prompts. Prompts may be prepared on several threads at once; `generate` is only ever called
/// by one engine thread.
pub trait Backend: Send + Sync + 'static {
    /// The id in `/v1/models` and in requests.
    fn name(&self) -> &str;
    /// Prompt and generated tokens together never exceed this.
    fn context(&self) -> usize;
    /// Ids that a prompt of tokens may hold are below this.
    fn vocab_size(&self) -> usize;
    /// Sampling defaults that came with the model.
    fn defaults(&self) -> &GenerationConfig;
    /// Ids of a chat, up to where the assistant's answer begins.
    fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError>;
    /// Ids of a raw prompt.
    fn text_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError>;
    /// A token as text, for log-probabilities; half characters come as U+FFFD.
    fn token_text(&self, token: u32) -> String;
    /// Generates; `on_piece` is called for every token and cancels with `Break`.
    fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError>;
}

/// The engine behind the server.
pub struct ModelBackend {
    model: Arc<Model>,
    name: String,
    base: GenerateOptions,
    /// A token and its text: tokens are decoded behind it, because decoders strip the space in front of a first token.
    anchor: (Vec<u32>, String),
}

impl ModelBackend {
    /// `base` gives what requests cannot choose: `context`, `kv`, `beams`. `name` is the model's id; `None` = its own.
    ///
    /// # Errors
    /// A model without a tokenizer.
    pub fn new(model: Arc<Model>, name: Option<String>, base: GenerateOptions) -> Result<Self, EngineError> {
        let name = name.unwrap_or_else(|| model.name().to_owned());
        let tokenizer = model.tokenizer()?;
        let ids = tokenizer.encode("a", false)?;
        let text = tokenizer.decode(&ids, false)?;
        Ok(Self { model, name, base, anchor: (ids, text) })
    }
}

impl Backend for ModelBackend {
    fn name(&self) -> &str {
        &self.name
    }
    fn context(&self) -> usize {
        self.base.context.unwrap_or(self.model.engine().config().context_length())
    }
    fn vocab_size(&self) -> usize {
        self.model.engine().config().vocab_size
    }
    fn defaults(&self) -> &GenerationConfig {
        self.model.generation_config()
    }
    fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        self.model.chat_prompt(messages)
    }
    fn text_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.model.tokenizer()?.encode_prompt(text)?)
    }
    fn token_text(&self, token: u32) -> String {
        let (anchor, anchor_text) = &self.anchor;
        let mut ids = anchor.clone();
        ids.push(token);
        let text = self.model.tokenizer().ok().and_then(|t| t.decode(&ids, false).ok()).unwrap_or_default();
        text.strip_prefix(anchor_text.as_str()).map(str::to_owned).unwrap_or(text)
    }
    fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let options =
            GenerateOptions { context: self.base.context, kv: self.base.kv, beams: self.base.beams, ..options.clone() };
        self.model.generate(prompt, &options, on_piece)
    }
}
