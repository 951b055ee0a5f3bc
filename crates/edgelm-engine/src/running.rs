//! A generation in progress, one pass at a time: what [`crate::Model::generate`] drives alone and [`crate::Batch`] with others.
//!
//! There is no difference between prompt and decoding but how many tokens the sequence is behind: whatever is known (the
//! prompt, then each token picked) has to go through the model, in pieces of any size, before the next token is picked.

use crate::{
    Engine, EngineError, FinishReason, GenerateOptions, Generation, Grammar, Guide, Piece, Sampler, Sequence, Step,
    Want, Workspace,
    engine::Past,
    generate::{TextOut, budget},
    sampling::{log_sum_exp, top_log_probabilities},
};
use edgelm_model::Tokenizer;
use std::{borrow::BorrowMut, ops::ControlFlow, time::Instant};

/// One generation; its sequence is its own or borrowed.
pub(crate) struct Running<'a, S = Sequence> {
    engine: &'a Engine,
    sequence: S,
    options: GenerateOptions,
    /// The prompt, then what was generated.
    known: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    sampler: Sampler,
    guide: Option<Guide>,
    out: TextOut<'a>,
    finish_reason: Option<FinishReason>,
    /// Prompt tokens that the sequence did not hold.
    computed: usize,
    begin: Instant,
    first_token: Option<Instant>,
    end: Instant,
}

impl<'a, S: BorrowMut<Sequence>> Running<'a, S> {
    /// Computes nothing yet. What `sequence` holds of the prompt is kept, but for the prompt's last token, whose logits are
    /// needed.
    pub(crate) fn new(
        engine: &'a Engine,
        tokenizer: Option<&'a Tokenizer>,
        mut sequence: S,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, EngineError> {
        let begin = Instant::now();
        let max_tokens = budget(engine.config().context_length(), prompt.len(), &options)?;
        let sampler = Sampler::new(&options.sampling)?;
        let guide = options.constraint.as_ref().map(Grammar::guide);
        let held = sequence.borrow_mut();
        let shared = held.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        held.truncate(shared.min(prompt.len() - 1));
        let computed = prompt.len() - held.tokens().len();
        Ok(Self {
            engine,
            sequence,
            out: TextOut::new(tokenizer, &options),
            options,
            known: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            max_tokens,
            sampler,
            guide,
            finish_reason: (max_tokens == 0).then_some(FinishReason::Length),
            computed,
            begin,
            first_token: None,
            end: begin,
        })
    }

    /// Where it is.
    pub(crate) fn sequence(&self) -> &Sequence {
        self.sequence.borrow()
    }

    /// Another place to go on from. What it lacks of the known tokens is computed, so that none can be wrong.
    pub(crate) fn resume_from(&mut self, sequence: S) {
        debug_assert!(self.known.starts_with(sequence.borrow().tokens()));
        self.sequence = sequence;
    }

    /// Shares the beginning of what it holds with a tree of beginnings.
    pub(crate) fn share_beginning(&mut self, engine: &Engine, past: &Past<'_>) {
        self.sequence.borrow_mut().share_beginning(engine, past);
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

    /// Tokens that have to go through the model before the next one is picked; 0 when it can be picked now, or it is over.
    pub(crate) fn pending(&self) -> usize {
        match self.finish_reason {
            Some(_) => 0,
            None => self.known.len() - self.sequence().tokens().len(),
        }
    }

    /// The reason, once it is over.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// The next `rows` of the tokens pending, for a pass. There have to be as many, and one at least.
    pub(crate) fn step(&mut self, rows: usize) -> Step<'_> {
        let sequence = self.sequence.borrow_mut();
        let held = sequence.tokens().len();
        let end = (held + rows).min(self.known.len());
        let want = if end == self.known.len() { Want::Last } else { Want::None };
        Step { sequence, tokens: &self.known[held..end], want }
    }

    /// Picks the next token from the logits that a pass computed for the last pending one. `on_piece` may cancel; it also
    /// gets the text that was held back, in a piece without a token, when this was the last.
    pub(crate) fn pick(
        &mut self,
        logits: &[f32],
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let mut piece = Piece::default();
        if let Some(n) = self.options.logprobs {
            piece.top_logprobs = top_log_probabilities(logits, n);
        }
        let mut allowed = logits.to_vec();
        if let Some(guide) = &mut self.guide {
            guide.mask(&mut allowed)?;
        }
        let (prompt, generated) = self.known.split_at(self.prompt_tokens);
        let token = self.sampler.pick(&mut allowed, prompt, generated);
        self.end = Instant::now();
        self.first_token.get_or_insert(self.end);
        if !self.options.ignore_eos && self.engine.config().eos_token_ids.contains(&token) {
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
        } else if self.known.len() - self.prompt_tokens == self.max_tokens {
            self.finish(FinishReason::Length, false, on_piece)
        } else {
            Ok(())
        }
    }

    fn finish(
        &mut self,
        reason: FinishReason,
        stopped: bool,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.finish_reason = Some(reason);
        let text = self.out.finish(stopped)?;
        if !text.is_empty() {
            // Nothing is left to cancel.
            let _ = on_piece(&Piece { text, ..Piece::default() });
        }
        Ok(())
    }

    /// Goes on to its end, alone.
    pub(crate) fn run(
        mut self,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let mut workspace = Workspace::default();
        loop {
            let reason = match (self.finish_reason, self.pending()) {
                (Some(reason), _) => reason,
                (None, rows) => {
                    self.engine.forward(&mut [self.step(rows)], &mut workspace)?;
                    self.pick(workspace.logits(), on_piece)?;
                    continue;
                }
            };
            return Ok(self.into_generation(reason));
        }
    }

    fn into_generation(mut self, finish_reason: FinishReason) -> Generation {
        let tokens = self.known.split_off(self.prompt_tokens);
        let first_token = self.first_token.unwrap_or(self.begin);
        let ttft = (first_token - self.begin).as_secs_f64();
        let decode = (self.end - first_token).as_secs_f64();
        Generation {
            text: self.out.into_text(),
            prompt_tokens: self.prompt_tokens,
            finish_reason,
            ttft_ms: ttft * 1e3,
            prefill_tokens_per_second: if ttft > 0.0 { self.computed as f64 / ttft } else { 0.0 },
            decode_tokens_per_second: if tokens.len() > 1 { (tokens.len() - 1) as f64 / decode } else { 0.0 },
            tokens,
        }
    }
}
