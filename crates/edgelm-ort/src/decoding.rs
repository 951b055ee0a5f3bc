//! One sequence: its tokens, and the cache that the graph returned.

use crate::{OrtError, OrtModel};
use edgelm_engine::{Decoding, EngineError};
use ort::{
    memory::Allocator,
    session::SessionInputValue,
    value::{DynValue, Tensor},
};

/// A sequence of a model. Another can begin when this one is dropped.
pub struct OrtSequence<'a> {
    model: &'a mut OrtModel,
    tokens: Vec<u32>,
    /// One for each cache of the model, in their order; none before the first tokens.
    past: Vec<DynValue>,
}

impl<'a> OrtSequence<'a> {
    pub(crate) fn new(model: &'a mut OrtModel) -> Self {
        Self { model, tokens: Vec::new(), past: Vec::new() }
    }

    fn run(&mut self, tokens: &[u32], wanted: usize, logits: &mut Vec<f32>) -> Result<(), OrtError> {
        let (held, new) = (self.tokens.len(), tokens.len());
        let numbers = |values: Vec<i64>| Ok::<_, OrtError>(Tensor::from_array(([1, values.len()], values))?.into_dyn());
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = vec![
            ("input_ids".to_owned(), numbers(tokens.iter().map(|&id| i64::from(id)).collect())?.into()),
            ("attention_mask".to_owned(), numbers(vec![1; held + new])?.into()),
        ];
        if self.model.with_positions {
            let positions = (held as i64..(held + new) as i64).collect();
            inputs.push(("position_ids".to_owned(), numbers(positions)?.into()));
        }
        let mut past = std::mem::take(&mut self.past).into_iter();
        for cache in &self.model.caches {
            let value = match past.next() {
                Some(value) => value,
                // Memory of no positions: only the runtime makes such a tensor.
                None => Tensor::<f32>::new(&Allocator::default(), [1, cache.heads, 0, cache.head_dim])?.into_dyn(),
            };
            inputs.push((cache.input.clone(), value.into()));
        }
        let mut outputs = self.model.session.run(inputs)?;
        let missing = |name: &str| OrtError::Runtime(format!("the graph returned no `{name}`"));
        {
            let all = outputs.get("logits").ok_or_else(|| missing("logits"))?;
            let (_, values) = all.try_extract_tensor::<f32>()?;
            let start = values.len().checked_sub(wanted.min(new) * self.model.vocab_size);
            let wanted = start.and_then(|start| values.get(start..)).ok_or_else(|| missing("logits of all tokens"))?;
            logits.clear();
            logits.extend_from_slice(wanted);
        }
        for cache in &self.model.caches {
            self.past.push(outputs.remove(&cache.output).ok_or_else(|| missing(&cache.output))?);
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Copies of the caches without the positions from `len` on.
    fn shorten(&mut self, len: usize) -> Result<(), OrtError> {
        let old = self.tokens.len();
        self.tokens.truncate(len);
        if len == 0 {
            self.past.clear();
            return Ok(());
        }
        for (value, cache) in self.past.iter_mut().zip(&self.model.caches) {
            let (_, values) = value.try_extract_tensor::<f32>()?;
            let (row, kept) = (old * cache.head_dim, len * cache.head_dim);
            let values: Vec<f32> = values.chunks_exact(row).flat_map(|head| &head[..kept]).copied().collect();
            *value = Tensor::from_array(([1, cache.heads, len, cache.head_dim], values))?.into_dyn();
        }
        Ok(())
    }
}

impl Decoding for OrtSequence<'_> {
    fn context_length(&self) -> usize {
        self.model.context_length
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.model.eos_token_ids
    }

    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn truncate(&mut self, len: usize) -> Result<(), EngineError> {
        if len < self.tokens.len() {
            self.shorten(len)?;
        }
        Ok(())
    }

    /// An error half way forgets all: the caches were given to the run that failed.
    fn forward(&mut self, tokens: &[u32], wanted: usize, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        let (vocab_size, context) = (self.model.vocab_size, self.model.context_length);
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::TokenId { id, vocab_size });
        }
        let prompt = self.tokens.len() + tokens.len();
        if prompt > context {
            return Err(EngineError::ContextLength { prompt, max_new: 0, context });
        }
        if let Err(error) = self.run(tokens, wanted, logits) {
            self.tokens.clear();
            self.past.clear();
            return Err(error.into());
        }
        Ok(())
    }
}
