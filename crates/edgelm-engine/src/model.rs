//! Engine, tokenizer and template together: text in, text out.

use crate::{
    Arithmetic, Constraint, Engine, EngineError, GenerateOptions, Generation, Grammar, Grammars, Piece, Sequence, beam,
    running::Running,
};
use edgelm_kernels::Cpu;
use edgelm_model::{ChatTemplate, Checkpoint, GenerationConfig, Message, Tokenizer};
use std::{
    ops::ControlFlow,
    sync::{Arc, OnceLock},
};

/// A model that is ready for use. `Sync`: several threads may call `generate`, each call has its own state.
pub struct Model {
    engine: Engine,
    /// Made at the first constraint: takes a second for a large vocabulary.
    grammars: Arc<OnceLock<Grammars>>,
}

impl Model {
    /// Packs the weights for this machine. Keeps the checkpoint for its tokenizer and embedding rows.
    pub fn load(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>) -> Result<Self, EngineError> {
        Self::load_with(checkpoint, cpu, Arithmetic::Fast)
    }

    /// The same for an arithmetic.
    pub fn load_with(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>, arithmetic: Arithmetic) -> Result<Self, EngineError> {
        Ok(Self { engine: Engine::load_with(checkpoint, cpu, arithmetic)?, grammars: Arc::default() })
    }

    /// The same model, its weights shared, on new threads: see [`Engine::on_new_threads`].
    ///
    /// # Errors
    /// Those of it.
    pub fn on_new_threads(&self) -> Result<Self, EngineError> {
        Ok(Self { engine: self.engine.on_new_threads()?, grammars: Arc::clone(&self.grammars) })
    }

    /// For messages and `/v1/models`.
    pub fn name(&self) -> &str {
        self.checkpoint().name()
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        self.engine.checkpoint()
    }

    /// The tokenizer; an error where the model has none or it cannot be read.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        Ok(self.checkpoint().tokenizer()?)
    }

    /// The template, if any.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, EngineError> {
        Ok(self.checkpoint().chat_template()?)
    }

    /// Defaults that came with the model.
    pub fn generation_config(&self) -> &GenerationConfig {
        self.checkpoint().generation()
    }

    /// Prompt ids of a chat (template, generation prompt, bos by the model's rule).
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        self.chat_prompt_with(messages, &serde_json::Map::new())
    }

    /// The same with further variables of the template: `tools`, `enable_thinking`, …
    pub fn chat_prompt_with(
        &self,
        messages: &[Message],
        arguments: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<u32>, EngineError> {
        let template = self.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let text = template.render(messages, true, arguments)?;
        Ok(self.tokenizer()?.encode_chat(&text)?)
    }

    /// A constraint on the output, compiled for this model's vocabulary.
    ///
    /// # Errors
    /// What cannot be enforced, by name; a model without a tokenizer.
    pub fn grammar(&self, constraint: &Constraint) -> Result<Grammar, EngineError> {
        let grammars = match self.grammars.get() {
            Some(grammars) => grammars,
            None => {
                let grammars = Grammars::new(self.tokenizer()?, self.engine.config())?;
                self.grammars.get_or_init(|| grammars)
            }
        };
        grammars.compile(constraint)
    }

    /// Generates from a fresh state. `on_piece` is called per token, also for those whose text is still held back
    /// (empty text); `Break` cancels. The concatenation of all pieces' text is `Generation::text`.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        if options.beams > 1 {
            return beam::beam_search(&self.engine, self.text_side(options)?, prompt, options, on_piece);
        }
        self.generate_in(&mut self.sequence(options), prompt, options, on_piece)
    }

    /// An empty state for `generate_in`.
    pub fn sequence(&self, options: &GenerateOptions) -> Sequence {
        let kv = options.kv.unwrap_or_else(|| self.engine.default_kv());
        self.engine.adapted_sequence(kv, options.adapter.clone())
    }

    /// As `generate`, but keeps the state: what `sequence` already holds of the prompt is not computed again, so that
    /// the next turn of a chat costs only its new tokens.
    pub fn generate_in(
        &self,
        sequence: &mut Sequence,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        Running::new(&self.engine, self.text_side(options)?, sequence, prompt, options.clone())?.run(self, on_piece)
    }

    /// The tokenizer, or none for a model that came without one and of which no text is asked.
    pub(crate) fn text_side(&self, options: &GenerateOptions) -> Result<Option<&Tokenizer>, EngineError> {
        if self.checkpoint().has_tokenizer() || !options.stop.is_empty() {
            return Ok(Some(self.tokenizer()?));
        }
        Ok(None)
    }
}
