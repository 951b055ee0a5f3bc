//! What the server needs from a model. Tests put a fake behind it.

use edgelm_engine::{
    Batch, BatchOptions, EngineError, GenerateOptions, KvMemory, LaneId, LoadedAdapter, Model, Progress,
};
use edgelm_model::{GenerationConfig, Message};
use std::sync::Arc;

/// A model that answers prompts. Prompts may be prepared on several threads at once; `lanes` is only ever called by the
/// engine thread, once.
pub trait Backend: Send + Sync + 'static {
    /// The id in `/v1/models` and in requests.
    fn name(&self) -> &str;
    /// Adapters that requests can choose in the model's place, with their ids.
    fn adapters(&self) -> &[(String, Arc<LoadedAdapter>)];
    /// Prompt and generated tokens together never exceed this.
    fn context(&self) -> usize;
    /// Tokens that one request can have in memory, where that is bounded.
    fn kv_limit(&self) -> Option<KvLimit>;
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
    /// Where generations run.
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError>;
}

/// The memory for keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLimit {
    /// As configured.
    pub budget_bytes: usize,
    /// What a request alone can have of it.
    pub tokens: usize,
}

/// Generations that share passes over the weights, as [`Batch`] has them: see there for what each call means.
#[allow(missing_docs)]
pub trait Lanes {
    fn begin(&mut self, prompt: &[u32], options: GenerateOptions) -> Result<LaneId, EngineError>;
    fn pending(&mut self, lane: LaneId) -> usize;
    fn cached_tokens(&self, lane: LaneId) -> usize;
    fn reserve(&mut self, plan: &[(LaneId, usize)]) -> bool;
    fn forward(&mut self, plan: &[(LaneId, usize)]) -> Result<(), EngineError>;
    fn take(&mut self, lane: LaneId) -> Result<Progress, EngineError>;
    fn pause(&mut self, lane: LaneId);
    fn end(&mut self, lane: LaneId);
    fn abandon(&mut self, lane: LaneId);
    fn memory(&self) -> KvMemory;
}

impl Lanes for Batch<'_> {
    fn begin(&mut self, prompt: &[u32], options: GenerateOptions) -> Result<LaneId, EngineError> {
        Batch::begin(self, prompt, options)
    }
    fn pending(&mut self, lane: LaneId) -> usize {
        Batch::pending(self, lane)
    }
    fn cached_tokens(&self, lane: LaneId) -> usize {
        Batch::cached_tokens(self, lane)
    }
    fn reserve(&mut self, plan: &[(LaneId, usize)]) -> bool {
        Batch::reserve(self, plan)
    }
    fn forward(&mut self, plan: &[(LaneId, usize)]) -> Result<(), EngineError> {
        Batch::forward(self, plan)
    }
    fn take(&mut self, lane: LaneId) -> Result<Progress, EngineError> {
        Batch::take(self, lane)
    }
    fn pause(&mut self, lane: LaneId) {
        Batch::pause(self, lane);
    }
    fn end(&mut self, lane: LaneId) {
        Batch::end(self, lane);
    }
    fn abandon(&mut self, lane: LaneId) {
        Batch::abandon(self, lane);
    }
    fn memory(&self) -> KvMemory {
        Batch::memory(self)
    }
}

/// The engine behind the server.
pub struct ModelBackend {
    model: Arc<Model>,
    name: String,
    adapters: Vec<(String, Arc<LoadedAdapter>)>,
    options: BatchOptions,
    kv_limit: Option<KvLimit>,
    /// A token and its text: tokens are decoded behind it, because decoders strip the space in front of a first token.
    anchor: (Vec<u32>, String),
}

impl ModelBackend {
    /// `options` gives what requests cannot choose. `name` is the model's id; `None` = its own. `adapters` are those that
    /// requests can choose by their ids.
    ///
    /// # Errors
    /// A model without a tokenizer; a budget that holds nothing; ids that are taken.
    pub fn new(
        model: Arc<Model>,
        name: Option<String>,
        adapters: Vec<(String, Arc<LoadedAdapter>)>,
        options: BatchOptions,
    ) -> Result<Self, EngineError> {
        let name = name.unwrap_or_else(|| model.name().to_owned());
        for (index, (id, _)) in adapters.iter().enumerate() {
            if *id == name || adapters[..index].iter().any(|(other, _)| other == id) {
                return Err(EngineError::Option { option: "lora", what: format!("`{id}` names two models") });
            }
        }
        let tokenizer = model.tokenizer()?;
        let ids = tokenizer.encode("a", false)?;
        let text = tokenizer.decode(&ids, false)?;
        let tokens = Batch::new(&model, options.clone())?.capacity();
        let kv_limit = options.kv_budget.zip(tokens).map(|(budget_bytes, tokens)| KvLimit { budget_bytes, tokens });
        Ok(Self { model, name, adapters, options, kv_limit, anchor: (ids, text) })
    }
}

impl Backend for ModelBackend {
    fn name(&self) -> &str {
        &self.name
    }
    fn adapters(&self) -> &[(String, Arc<LoadedAdapter>)] {
        &self.adapters
    }
    fn context(&self) -> usize {
        self.options.context.unwrap_or(self.model.engine().config().context_length())
    }
    fn kv_limit(&self) -> Option<KvLimit> {
        self.kv_limit
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
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError> {
        Ok(Box::new(Batch::new(&self.model, self.options.clone())?))
    }
}
