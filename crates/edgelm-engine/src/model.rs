//! Engine, tokenizer and template together: text in, text out.
use crate::{Engine, EngineError, GenerateOptions, Generation, Piece};
use edgelm_kernels::Cpu;
use edgelm_model::{ChatTemplate, Checkpoint, GenerationConfig, Message, Tokenizer};
use std::{ops::ControlFlow, sync::Arc};

/// A model that is ready for use. `Sync`: several threads may call `generate`, each call has its own state.
pub struct Model {
    _private: (),
}

impl Model {
    /// Loads everything. Keeps the checkpoint (tokenizer, embedding rows).
    pub fn load(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>) -> Result<Self, EngineError> {
        let _ = (checkpoint, cpu);
        todo!()
    }
    /// For messages and `/v1/models`.
    pub fn name(&self) -> &str {
        todo!()
    }
    /// The engine.
    pub fn engine(&self) -> &Engine {
        todo!()
    }
    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        todo!()
    }
    /// The tokenizer; an error where the model has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        todo!()
    }
    /// The template, if any.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, EngineError> {
        todo!()
    }
    /// Defaults that came with the model.
    pub fn generation_config(&self) -> &GenerationConfig {
        todo!()
    }
    /// Prompt ids of a chat (template, generation prompt, bos by the model's rule).
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        let _ = messages;
        todo!()
    }
    /// Generates. `on_piece` is called per token, also for those whose text is still held back (empty text);
    /// `Break` cancels. The concatenation of all pieces' text is `Generation::text`.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let _ = (prompt, options, on_piece);
        todo!()
    }
}
#[allow(unused)]
type _Unused = GenerationConfig;
