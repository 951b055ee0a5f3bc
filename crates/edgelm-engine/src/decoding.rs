//! Generating with another engine than this crate's.

use crate::{
    EngineError, FinishReason, GenerateOptions, Generation, Grammar, Piece, Sampler,
    generate::{TextOut, budget},
    sampling::{log_sum_exp, top_log_probabilities},
};
use edgelm_model::Tokenizer;
use std::{ops::ControlFlow, time::Instant};

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
/// no text, and stop strings are not found. Beams, cache format and adapters of `options` are not for it.
pub fn sample(
    decoding: &mut dyn Decoding,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
) -> Result<Generation, EngineError> {
    let begin = Instant::now();
    let max_tokens = budget(decoding.context_length(), prompt.len(), options)?;
    let mut sampler = Sampler::new(&options.sampling)?;
    let mut guide = options.constraint.as_ref().map(Grammar::guide);
    let shared = decoding.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    decoding.truncate(shared.min(prompt.len() - 1))?;
    let computed = prompt.len() - decoding.tokens().len();

    let mut out = TextOut::new(tokenizer, options);
    let mut tokens = Vec::new();
    let mut first_token = begin;
    let mut finish_reason = FinishReason::Length;
    let mut stopped = false;
    let mut feed = prompt[prompt.len() - computed..].to_vec();
    let mut logits = Vec::new();
    while tokens.len() < max_tokens {
        decoding.forward(&feed, 1, &mut logits)?;
        let mut piece = Piece::default();
        if let Some(n) = options.logprobs {
            piece.top_logprobs = top_log_probabilities(&logits, n);
        }
        let mut allowed = logits.clone();
        if let Some(guide) = &mut guide {
            guide.mask(&mut allowed)?;
        }
        let token = sampler.pick(&mut allowed, prompt, &tokens);
        if tokens.is_empty() {
            first_token = Instant::now();
        }
        if !options.ignore_eos && decoding.eos_token_ids().contains(&token) {
            finish_reason = FinishReason::Stop;
            break;
        }
        if options.logprobs.is_some() {
            piece.logprob = Some((f64::from(logits[token as usize]) - log_sum_exp(&logits)) as f32);
        }
        tokens.push(token);
        piece.token = Some(token);
        (piece.text, stopped) = out.push(token)?;
        let is_complete = guide.as_mut().map_or(Ok(false), |guide| guide.accept(token))?;
        let flow = on_piece(&piece);
        if stopped || is_complete {
            finish_reason = FinishReason::Stop;
            break;
        }
        if flow.is_break() {
            finish_reason = FinishReason::Cancelled;
            break;
        }
        feed.clear();
        feed.push(token);
    }
    let end = Instant::now();
    let rest = out.finish(stopped)?;
    if !rest.is_empty() {
        // Nothing is left to cancel.
        let _ = on_piece(&Piece { text: rest, ..Piece::default() });
    }
    let ttft = (first_token - begin).as_secs_f64();
    let decode = (end - first_token).as_secs_f64();
    Ok(Generation {
        text: out.into_text(),
        prompt_tokens: prompt.len(),
        finish_reason,
        ttft_ms: ttft * 1e3,
        prefill_tokens_per_second: if ttft > 0.0 { computed as f64 / ttft } else { 0.0 },
        decode_tokens_per_second: if tokens.len() > 1 { (tokens.len() - 1) as f64 / decode } else { 0.0 },
        tokens,
    })
}
