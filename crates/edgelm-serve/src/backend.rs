//! What the server needs from a model. Tests put a fake behind it.

use edgelm_engine::{Constraint, EngineError, GenerateOptions, Generation, Grammar, Model, Piece, Pooling};
use edgelm_model::{Checkpoint, GenerationConfig, Message};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

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
    fn embed(&self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, EngineError>;
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
    base: GenerateOptions,
    about: Description,
    /// A token and its text: tokens are decoded behind it, because decoders strip the space in front of a first token.
    anchor: (Vec<u32>, String),
}

impl ModelBackend {
    /// `base` gives what requests cannot choose: `context`, `kv`, `beams`. `name` is the model's id; `None` = its own.
    ///
    /// # Errors
    /// A model without a tokenizer, or with a chat template that cannot be read.
    pub fn new(model: Arc<Model>, name: Option<String>, base: GenerateOptions) -> Result<Self, EngineError> {
        let name = name.unwrap_or_else(|| model.name().to_owned());
        let tokenizer = model.tokenizer()?;
        let ids = tokenizer.encode("a", false)?;
        let text = tokenizer.decode(&ids, false)?;
        let about = describe(&model)?;
        Ok(Self { model, name, base, about, anchor: (ids, text) })
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
    fn embed(&self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, EngineError> {
        self.model.embed(tokens, pooling, &self.base)
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

fn describe(model: &Model) -> Result<Description, EngineError> {
    let checkpoint = model.checkpoint();
    Ok(Description {
        architecture: checkpoint.config().arch.name.to_owned(),
        parameters: checkpoint.parameters(),
        size_bytes: checkpoint.file_bytes(),
        format: main_format(checkpoint),
        hidden_size: checkpoint.config().hidden_size,
        chat_template: model.chat_template()?.map(|template| template.source().to_owned()),
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
