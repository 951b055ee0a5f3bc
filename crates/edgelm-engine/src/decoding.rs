//! Generating with another engine than this crate's.

use crate::{
    EngineError, GenerateOptions, Generation,
    picking::{OnPiece, Picking},
};
use edgelm_model::Tokenizer;

/// One sequence of a model that is ready to run, in whichever engine.
pub trait Decoding {
    /// Positions that it can have.
    fn context_length(&self) -> usize;

    /// Tokens that end an answer.
    fn eos_token_ids(&self) -> &[u32];

    /// Tokens that are held.
    fn tokens(&self) -> &[u32];

    /// Forgets everything from position `len` on.
    fn truncate(&mut self, len: usize) -> Result<(), EngineError>;

    /// Appends tokens; `logits` become those of the last `wanted` of them, `[wanted, V]`.
    ///
    /// Errors on no tokens, ids outside the vocabulary and an over-full context.
    fn forward(&mut self, tokens: &[u32], wanted: usize, logits: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// Samples token after token. What the sequence already holds of the prompt is not computed again. Without a tokenizer there is
/// no text, and stop strings are not found. Beams, cache format, adapters and speculation of `options` are not for it.
pub fn sample(
    decoding: &mut dyn Decoding,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_piece: &mut OnPiece<'_>,
) -> Result<Generation, EngineError> {
    let mut picking = Picking::new(decoding.context_length(), tokenizer, prompt, options.clone())?;
    decoding.truncate(picking.usable(decoding.tokens()))?;
    let computed = prompt.len() - decoding.tokens().len();
    let mut logits = Vec::new();
    loop {
        if let Some(reason) = picking.finish_reason() {
            return Ok(picking.into_generation(reason, computed));
        }
        let held = decoding.tokens().len();
        decoding.forward(&picking.known()[held..], 1, &mut logits)?;
        picking.pick(&logits, decoding.eos_token_ids(), on_piece)?;
    }
}
