//! From logits to tokens and text, until a generation is over: the half of it that does not care which engine computes.

use crate::{
    EngineError, FinishReason, GenerateOptions, Generation, Grammar, Guesses, Guide, Piece, Sampler,
    generate::{TextOut, budget},
    sampling::{log_sum_exp, top_log_probabilities},
};
use edgelm_model::Tokenizer;
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Where the pieces of an answer go; `Break` cancels.
pub(crate) type OnPiece<'p> = dyn FnMut(&Piece) -> ControlFlow<()> + 'p;

/// What is known of a sequence, and how it goes on.
pub(crate) struct Picking<'a> {
    options: GenerateOptions,
    /// The prompt, then what was generated.
    known: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    sampler: Sampler,
    guide: Option<Guide>,
    out: TextOut<'a>,
    finish_reason: Option<FinishReason>,
    begin: Instant,
    first_token: Option<Instant>,
    end: Instant,
    /// Spent on the constraint, so far.
    constraint_time: Duration,
}

impl<'a> Picking<'a> {
    /// For a model of so many positions. Without a tokenizer there is no text, and stop strings are not found.
    pub(crate) fn new(
        context_length: usize,
        tokenizer: Option<&'a Tokenizer>,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, EngineError> {
        let begin = Instant::now();
        let max_tokens = budget(context_length, prompt.len(), &options)?;
        Ok(Self {
            sampler: Sampler::new(&options.sampling)?,
            guide: options.constraint.as_ref().map(Grammar::guide),
            out: TextOut::new(tokenizer, &options),
            options,
            known: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            max_tokens,
            finish_reason: (max_tokens == 0).then_some(FinishReason::Length),
            begin,
            first_token: None,
            end: begin,
            constraint_time: Duration::ZERO,
        })
    }

    /// The prompt, then what was generated.
    pub(crate) fn known(&self) -> &[u32] {
        &self.known
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub(crate) fn options(&self) -> &GenerateOptions {
        &self.options
    }

    /// The reason, once it is over.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// What the constraint has taken so far: masks, that is, which are nearly all of it.
    pub(crate) fn constraint_time(&self) -> Duration {
        self.constraint_time
    }

    /// Tokens that may still come.
    pub(crate) fn left(&self) -> usize {
        match self.finish_reason {
            Some(_) => 0,
            None => self.max_tokens - (self.known.len() - self.prompt_tokens),
        }
    }

    /// The sampler in its present state, for a guess at what it will pick.
    pub(crate) fn sampler(&self) -> Sampler {
        self.sampler.clone()
    }

    /// How many known tokens a sequence that holds `held` can keep: the last one's logits are needed.
    pub(crate) fn usable(&self, held: &[u32]) -> usize {
        held.iter().zip(&self.known).take_while(|(a, b)| a == b).count().min(self.known.len() - 1)
    }

    /// Picks the next token from the logits behind the last known one. `on_piece` also gets the text that was held back, in a
    /// piece without a token, when this was the last.
    pub(crate) fn pick(
        &mut self,
        logits: &[f32],
        eos_token_ids: &[u32],
        on_piece: &mut OnPiece<'_>,
    ) -> Result<(), EngineError> {
        let mut piece = Piece::default();
        if let Some(n) = self.options.logprobs {
            piece.top_logprobs = top_log_probabilities(logits, n);
        }
        let mut allowed = logits.to_vec();
        if let Some(guide) = &mut self.guide {
            let begin = Instant::now();
            guide.mask(&mut allowed)?;
            self.constraint_time += begin.elapsed();
        }
        let (prompt, generated) = self.known.split_at(self.prompt_tokens);
        let token = self.sampler.pick(&mut allowed, prompt, generated);
        self.end = Instant::now();
        self.first_token.get_or_insert(self.end);
        if !self.options.ignore_eos && eos_token_ids.contains(&token) {
            return self.finish(FinishReason::Stop, false, on_piece);
        }
        if self.options.logprobs.is_some() {
            piece.logprob = Some((f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32);
        }
        let is_complete = self.guide.as_mut().map_or(Ok(false), |guide| guide.accept(token))?;
        self.known.push(token);
        piece.token = Some(token);
        let stopped;
        (piece.text, stopped) = self.out.push(token)?;
        let flow = on_piece(&piece);
        if stopped {
            self.finish(FinishReason::Stop, true, on_piece)
        } else if is_complete {
            self.finish(FinishReason::Stop, false, on_piece)
        } else if flow.is_break() {
            self.finish(FinishReason::Cancelled, false, on_piece)
        } else if self.left() == 0 {
            self.finish(FinishReason::Length, false, on_piece)
        } else {
            Ok(())
        }
    }

    fn finish(&mut self, reason: FinishReason, stopped: bool, on_piece: &mut OnPiece<'_>) -> Result<(), EngineError> {
        self.finish_reason = Some(reason);
        let text = self.out.finish(stopped)?;
        if !text.is_empty() {
            // Nothing is left to cancel.
            let _ = on_piece(&Piece { text, ..Piece::default() });
        }
        Ok(())
    }

    /// The whole of it. `computed` of the prompt's tokens were not held already.
    pub(crate) fn into_generation(mut self, finish_reason: FinishReason, computed: usize) -> Generation {
        let tokens = self.known.split_off(self.prompt_tokens);
        let first_token = self.first_token.unwrap_or(self.begin);
        let ttft = (first_token - self.begin).as_secs_f64();
        let decode = (self.end - first_token).as_secs_f64();
        Generation {
            text: self.out.into_text(),
            prompt_tokens: self.prompt_tokens,
            finish_reason,
            ttft_ms: ttft * 1e3,
            prefill_tokens_per_second: if ttft > 0.0 { computed as f64 / ttft } else { 0.0 },
            decode_tokens_per_second: if tokens.len() > 1 { (tokens.len() - 1) as f64 / decode } else { 0.0 },
            guesses: Guesses::default(),
            tokens,
        }
    }
}
