//! Greedy answers, as task accuracy and text metrics ask for them.

use edgelm_engine::{EngineError, FinishReason, GenerateOptions, Generation, Model};
use edgelm_kernels::KvDtype;
use std::ops::ControlFlow;

/// How much of a file is worked through, and how long answers may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationLimits {
    /// Per answer: 128.
    pub max_new_tokens: usize,
    /// Only the first so many lines (of each task); `None` = all.
    pub lines: Option<usize>,
    /// Cache format; `None` = the engine's default.
    pub kv: Option<KvDtype>,
}

impl Default for GenerationLimits {
    fn default() -> Self {
        Self { max_new_tokens: 128, lines: None, kv: None }
    }
}

/// Continues a prompt greedily until eos or `max_new_tokens`.
/// Errors where the context ends before either: an answer cut short by it is not the model's answer.
pub(crate) fn answer(model: &Model, prompt: &[u32], limits: &GenerationLimits) -> Result<Generation, EngineError> {
    let context = model.engine().config().context_length();
    let too_long = EngineError::ContextLength { prompt: prompt.len(), max_new: limits.max_new_tokens, context };
    let room = context.saturating_sub(prompt.len());
    let max_tokens = limits.max_new_tokens.min(room);
    if max_tokens == 0 && limits.max_new_tokens > 0 {
        return Err(too_long);
    }
    let options = GenerateOptions { max_tokens: Some(max_tokens), kv: limits.kv, ..GenerateOptions::default() };
    let generation = model.generate(prompt, &options, &mut |_| ControlFlow::Continue(()))?;
    if generation.finish_reason == FinishReason::Length && max_tokens < limits.max_new_tokens {
        return Err(too_long);
    }
    Ok(generation)
}
