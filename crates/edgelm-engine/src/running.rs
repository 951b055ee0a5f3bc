//! A generation in progress, one pass at a time: what [`crate::Model::generate`] drives alone and [`crate::Batch`] with others.
//!
//! There is no difference between prompt and decoding but how many tokens the sequence is behind: whatever is known (the
//! prompt, then each token picked) has to go through the model, in pieces of any size, before the next token is picked.

use crate::{
    Engine, EngineError, FinishReason, GenerateOptions, Generation, Model, Sequence, Step, Want, Workspace,
    engine::Past,
    picking::{OnPiece, Picking},
    speculation::{Candidate, Guessed, Guesses, Speculator},
};
use edgelm_model::Tokenizer;
use std::{
    borrow::BorrowMut,
    time::{Duration, Instant},
};

/// One generation; its sequence is its own or borrowed.
pub(crate) struct Running<'a, S = Sequence> {
    engine: &'a Engine,
    sequence: S,
    picking: Picking<'a>,
    /// Prompt tokens that the sequence did not hold.
    computed: usize,
    guessed: Guessed,
    /// The last known token and the guesses behind it, for a pass.
    feed: Vec<u32>,
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
        let picking = Picking::new(engine.config().context_length(), tokenizer, prompt, options)?;
        let held = sequence.borrow_mut();
        held.truncate(picking.usable(held.tokens()));
        let computed = prompt.len() - held.tokens().len();
        Ok(Self { engine, sequence, picking, computed, guessed: Guessed::default(), feed: Vec::new() })
    }

    /// Where it is.
    pub(crate) fn sequence(&self) -> &Sequence {
        self.sequence.borrow()
    }

    /// Another place to go on from. What it lacks of the known tokens is computed, so that none can be wrong.
    pub(crate) fn resume_from(&mut self, sequence: S) {
        debug_assert!(self.known().starts_with(sequence.borrow().tokens()));
        self.sequence = sequence;
        self.guessed.forget();
    }

    /// Shares the beginning of what it holds with a tree of beginnings.
    pub(crate) fn share_beginning(&mut self, engine: &Engine, past: &Past<'_>) {
        self.sequence.borrow_mut().share_beginning(engine, past);
    }

    /// The prompt, then what was generated.
    pub(crate) fn known(&self) -> &[u32] {
        self.picking.known()
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.picking.prompt_tokens()
    }

    pub(crate) fn options(&self) -> &GenerateOptions {
        self.picking.options()
    }

    /// The reason, once it is over.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.picking.finish_reason()
    }

    /// What its constraint has taken so far.
    pub(crate) fn constraint_time(&self) -> Duration {
        self.picking.constraint_time()
    }

    /// How guesses have fared.
    pub(crate) fn guesses(&self) -> Guesses {
        self.guessed.counts
    }

    /// Whether a draft model holds a state for it.
    pub(crate) fn holds_draft(&self) -> bool {
        self.guessed.holds_draft()
    }

    /// Tokens that have to go through the model before the next one is picked; 0 when it can be picked now, or it is over.
    pub(crate) fn pending(&self) -> usize {
        match self.finish_reason() {
            Some(_) => 0,
            None => self.known().len() - self.sequence().tokens().len(),
        }
    }

    /// To get guesses, where one token is pending.
    pub(crate) fn candidate(&mut self) -> Option<Candidate<'_>> {
        self.guessed.tokens.clear();
        (self.pending() == 1).then(|| Candidate {
            known: self.picking.known(),
            prompt_tokens: self.picking.prompt_tokens(),
            sampler: self.picking.sampler(),
            // One token comes without a guess.
            most: self.picking.left() - 1,
            guessed: &mut self.guessed,
        })
    }

    /// Rows of the next pass that guesses would take.
    pub(crate) fn guessed_rows(&self) -> usize {
        self.guessed.tokens.len()
    }

    /// The next `rows` of the tokens pending, for a pass, and guesses behind the last of them where there are more rows. At
    /// least one has to be pending.
    pub(crate) fn step(&mut self, rows: usize) -> Step<'_> {
        let sequence = self.sequence.borrow_mut();
        let known = self.picking.known();
        let held = sequence.tokens().len();
        let end = (held + rows).min(known.len());
        let guesses = (held + rows - end).min(self.guessed.tokens.len());
        self.guessed.tokens.truncate(guesses);
        if guesses > 0 {
            self.feed.clear();
            self.feed.extend_from_slice(&known[held..]);
            self.feed.extend_from_slice(&self.guessed.tokens);
            return Step { sequence, tokens: &self.feed, want: Want::All };
        }
        let want = if end == known.len() { Want::Last } else { Want::None };
        Step { sequence, tokens: &known[held..end], want }
    }

    /// Picks tokens from the logits that a pass computed for the last pending one and the guesses behind it, as far as these
    /// come true: `[1 + guesses, V]`. `on_piece` may cancel; it also gets the text that was held back, in a piece without a
    /// token, when this was the last.
    pub(crate) fn pick(&mut self, logits: &[f32], on_piece: &mut OnPiece<'_>) -> Result<(), EngineError> {
        let config = self.engine.config();
        let guesses = std::mem::take(&mut self.guessed.tokens);
        let mut right = 0;
        for (row, logits) in logits.chunks_exact(config.vocab_size).enumerate() {
            self.picking.pick(logits, &config.eos_token_ids, on_piece)?;
            match guesses.get(row) {
                Some(guess) if self.known().last() == Some(guess) && self.finish_reason().is_none() => right += 1,
                _ => break,
            }
        }
        if !guesses.is_empty() {
            self.guessed.observe(guesses.len(), right);
            let sequence = self.sequence.borrow_mut();
            sequence.truncate(self.picking.usable(sequence.tokens()));
        }
        Ok(())
    }

    /// Goes on to its end, alone.
    pub(crate) fn run(mut self, model: &Model, on_piece: &mut OnPiece<'_>) -> Result<Generation, EngineError> {
        let mut workspace = Workspace::default();
        let mut speculator =
            self.options().speculation.as_ref().map(|speculation| Speculator::new(model, speculation)).transpose()?;
        loop {
            let pending = match (self.finish_reason(), self.pending()) {
                (Some(reason), _) => return Ok(self.into_generation(reason)),
                (None, pending) => pending,
            };
            if let (Some(speculator), Some(candidate)) = (&mut speculator, self.candidate()) {
                speculator.guess(&mut [candidate])?;
            }
            let rows = pending + self.guessed_rows();
            let begin = Instant::now();
            self.engine.forward(&mut [self.step(rows)], &mut workspace)?;
            if let (Some(speculator), 1) = (&mut speculator, pending) {
                speculator.observe(rows, begin.elapsed());
            }
            self.pick(workspace.logits(), on_piece)?;
        }
    }

    fn into_generation(self, finish_reason: FinishReason) -> Generation {
        let guesses = self.guesses();
        Generation { guesses, ..self.picking.into_generation(finish_reason, self.computed) }
    }
}
