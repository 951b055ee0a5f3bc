//! What the server needs from a model. Tests put a fake behind it.

use crate::health::{Patience, Probe, ProbeText, run_probe};
use edgelm_engine::{
    Batch, BatchOptions, Constraint, EngineError, GenerateOptions, Grammar, KvMemory, LaneId, LoadedAdapter, Model,
    Pooling, Progress, Saving, Speculation,
};
use edgelm_model::{Checkpoint, GenerationConfig, Message, ModelError};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A model that answers prompts. Prompts may be prepared on several threads at once; `lanes` is only ever called by
/// engine threads, of which there is one at a time but for those that hang.
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
    /// What else clients may know.
    fn description(&self) -> &Description;
    /// Ids of a chat, up to where the assistant's answer begins. `arguments` are further variables of the template.
    fn chat_prompt(&self, messages: &[Message], arguments: &Map<String, Value>) -> Result<Vec<u32>, EngineError>;
    /// Ids of a raw prompt.
    fn text_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError>;
    /// Ids of a text that is not a prompt: nothing is added to it.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, EngineError>;
    /// Text of ids, control tokens included.
    fn text(&self, tokens: &[u32]) -> Result<String, EngineError>;
    /// The id of a control token, if there is one of this name.
    fn control_token(&self, name: &str) -> Option<u32>;
    /// A constraint on answers, compiled; an error names what cannot be enforced.
    fn grammar(&self, constraint: &Constraint) -> Result<Grammar, EngineError>;
    /// The embedding of a text, of length 1. May be called beside `generate`, from one thread at a time.
    fn embed(
        &self,
        tokens: &[u32],
        pooling: Pooling,
        adapter: Option<Arc<LoadedAdapter>>,
    ) -> Result<Vec<f32>, EngineError>;
    /// A token as text, for log-probabilities; half characters come as U+FFFD.
    fn token_text(&self, token: u32) -> String;
    /// What the model makes of a text. May be called beside `lanes`; `None` where `patience` was over first.
    fn probe(&self, text: &ProbeText, patience: Patience<'_>) -> Result<Option<Probe>, EngineError>;
    /// The same model for a new engine thread, where the last one hangs and may hold what it used; `None` = this one will do.
    ///
    /// # Errors
    /// What keeps it from being had.
    fn restarted(&self) -> Result<Option<Arc<dyn Backend>>, EngineError> {
        Ok(None)
    }
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
    fn speculate(&mut self, plan: &mut Vec<(LaneId, usize)>) -> Result<(), EngineError>;
    fn forward(&mut self, plan: &[(LaneId, usize)]) -> Result<(), EngineError>;
    fn take(&mut self, lane: LaneId) -> Result<Progress, EngineError>;
    fn pause(&mut self, lane: LaneId);
    fn end(&mut self, lane: LaneId);
    fn abandon(&mut self, lane: LaneId);
    fn memory(&self) -> KvMemory;
    fn save_next(&mut self, _untouched: Duration) -> Saving {
        Saving::Nothing
    }
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
    fn speculate(&mut self, plan: &mut Vec<(LaneId, usize)>) -> Result<(), EngineError> {
        Batch::speculate(self, plan)
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
    fn save_next(&mut self, untouched: Duration) -> Saving {
        Batch::save_next(self, untouched)
    }
}

/// What a model is, for listings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    /// Family (`llama`, `qwen3` …).
    pub architecture: String,
    /// Weights.
    pub parameters: u64,
    /// Bytes of the model's files.
    pub size_bytes: u64,
    /// The format most weights are stored in.
    pub format: String,
    /// Width of the states, and so of embeddings.
    pub hidden_size: usize,
    /// Source of the chat template, if there is one.
    pub chat_template: Option<String>,
}

/// The engine behind the server.
pub struct ModelBackend {
    model: Arc<Model>,
    name: String,
    adapters: Vec<(String, Arc<LoadedAdapter>)>,
    options: BatchOptions,
    about: Description,
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
        let about = describe(model.checkpoint())?;
        Ok(Self { model, name, adapters, options, about, kv_limit, anchor: (ids, text) })
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
    fn description(&self) -> &Description {
        &self.about
    }
    fn chat_prompt(&self, messages: &[Message], arguments: &Map<String, Value>) -> Result<Vec<u32>, EngineError> {
        self.model.chat_prompt_with(messages, arguments)
    }
    fn text_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.model.tokenizer()?.encode_prompt(text)?)
    }
    fn tokens(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.model.tokenizer()?.encode(text, false)?)
    }
    fn text(&self, tokens: &[u32]) -> Result<String, EngineError> {
        Ok(self.model.tokenizer()?.decode(tokens, false)?)
    }
    fn control_token(&self, name: &str) -> Option<u32> {
        let tokenizer = self.model.tokenizer().ok()?;
        tokenizer.token_to_id(name).filter(|&id| tokenizer.is_special(id))
    }
    fn grammar(&self, constraint: &Constraint) -> Result<Grammar, EngineError> {
        self.model.grammar(constraint)
    }
    fn embed(
        &self,
        tokens: &[u32],
        pooling: Pooling,
        adapter: Option<Arc<LoadedAdapter>>,
    ) -> Result<Vec<f32>, EngineError> {
        let (context, kv) = (self.options.context, self.options.kv);
        self.model.embed(tokens, pooling, &GenerateOptions { context, kv, adapter, ..GenerateOptions::default() })
    }
    fn token_text(&self, token: u32) -> String {
        let (anchor, anchor_text) = &self.anchor;
        let mut ids = anchor.clone();
        ids.push(token);
        let text = self.model.tokenizer().ok().and_then(|t| t.decode(&ids, false).ok()).unwrap_or_default();
        text.strip_prefix(anchor_text.as_str()).map(str::to_owned).unwrap_or(text)
    }
    fn probe(&self, text: &ProbeText, patience: Patience<'_>) -> Result<Option<Probe>, EngineError> {
        let tokens = self.model.tokenizer()?.encode_prompt(&text.text)?;
        let options = GenerateOptions { kv: self.options.kv, ..GenerateOptions::default() };
        let engine = self.model.engine();
        let kv = self.options.kv.unwrap_or_else(|| engine.default_kv());
        let numerics = format!("{} {kv:?} {}", engine.cpu().isa().name(), env!("CARGO_PKG_VERSION"));
        run_probe(engine, self.model.sequence(&options), (text, &tokens), self.context(), numerics, patience)
    }
    fn restarted(&self) -> Result<Option<Arc<dyn Backend>>, EngineError> {
        let mut options = self.options.clone();
        if let Some(Speculation::Draft(draft)) = &mut options.speculation {
            *draft = Arc::new(draft.on_new_threads()?);
        }
        Ok(Some(Arc::new(Self {
            model: Arc::new(self.model.on_new_threads()?),
            name: self.name.clone(),
            adapters: self.adapters.clone(),
            options,
            about: self.about.clone(),
            kv_limit: self.kv_limit,
            anchor: self.anchor.clone(),
        })))
    }
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError> {
        Ok(Box::new(Batch::new(&self.model, self.options.clone())?))
    }
}

/// What listings say of a model. Reads no weights.
///
/// # Errors
/// A chat template that cannot be read.
pub fn describe(checkpoint: &Checkpoint) -> Result<Description, ModelError> {
    Ok(Description {
        architecture: checkpoint.config().arch.name.to_owned(),
        parameters: checkpoint.parameters(),
        size_bytes: checkpoint.file_bytes(),
        format: main_format(checkpoint),
        hidden_size: checkpoint.config().hidden_size,
        chat_template: checkpoint.chat_template()?.map(|template| template.source().to_owned()),
    })
}

/// The format that most weights are stored in.
fn main_format(checkpoint: &Checkpoint) -> String {
    let mut weights: BTreeMap<&'static str, u64> = BTreeMap::new();
    for &id in checkpoint.tensor_ids() {
        if let Ok((dtype, shape)) = checkpoint.describe(id) {
            *weights.entry(dtype.name()).or_default() += shape.iter().map(|&n| n as u64).product::<u64>();
        }
    }
    weights.into_iter().max_by_key(|&(_, count)| count).map_or_else(String::new, |(name, _)| name.to_owned())
}
