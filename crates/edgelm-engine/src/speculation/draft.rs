//! Guesses of a smaller model.
//!
//! It picks with a copy of the target's sampler, random numbers included, so that where the two models' distributions agree
//! they also draw the same token.

use super::Candidate;
use crate::{EngineError, Model, Step, Want, Workspace};
use edgelm_kernels::{KvCache, KvDtype};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Tokens of prompts that go through the draft model between two passes of the target, so that others do not wait for long.
const CATCH_UP_ROWS: usize = 256;

/// The model and what it works in.
pub(super) struct Draft {
    model: Arc<Model>,
    kv: KvDtype,
    vocab_size: usize,
    workspace: Workspace,
}

impl Draft {
    /// # Errors
    /// Different tokens: then a guess would mean something else.
    pub(super) fn new(target: &Model, model: Arc<Model>) -> Result<Self, EngineError> {
        let sizes = [target.engine().config().vocab_size, model.engine().config().vocab_size];
        let vocab_size = sizes[0].min(sizes[1]);
        if target.checkpoint().has_tokenizer() && model.checkpoint().has_tokenizer() {
            let (ours, its) = (target.tokenizer()?, model.tokenizer()?);
            let differs = |&id: &u32| ours.id_to_token(id) != its.id_to_token(id);
            if let Some(id) = (0..vocab_size as u32).find(differs) {
                let name = |token: Option<String>| token.map_or("none".to_owned(), |token| format!("{token:?}"));
                let (its, ours) = (name(its.id_to_token(id)), name(ours.id_to_token(id)));
                let what = format!("token {id} of {} is {its}, of {} {ours}", model.name(), target.name());
                return Err(EngineError::Option { option: "draft", what });
            }
        } else if sizes[0] != sizes[1] {
            let what = format!("{} tokens in {}, {} in {}", sizes[1], model.name(), sizes[0], target.name());
            return Err(EngineError::Option { option: "draft", what });
        }
        let kv = model.engine().default_kv();
        Ok(Self { model, kv, vocab_size, workspace: Workspace::default() })
    }

    pub(super) fn page_bytes(&self) -> usize {
        KvCache::page_bytes(&self.model.engine().kv_shapes(), self.kv)
    }

    /// Brings the states behind the known tokens. Who is still far behind gets no guesses.
    pub(super) fn catch_up(&mut self, candidates: &mut [Candidate<'_>]) -> Result<(), EngineError> {
        let mut left = CATCH_UP_ROWS;
        let context = self.model.engine().config().context_length();
        for candidate in candidates {
            let known = candidate.known;
            candidate.most = candidate.most.min(context.saturating_sub(known.len()));
            // Also one that the draft model has no tokens for.
            if candidate.most == 0 || known.iter().any(|&token| token as usize >= self.vocab_size) {
                candidate.most = 0;
                continue;
            }
            let sequence = candidate.guessed.draft.get_or_insert_with(|| self.model.engine().sequence(self.kv));
            let same = sequence.tokens().iter().zip(known).take_while(|(a, b)| a == b).count();
            sequence.truncate(same.min(known.len() - 1));
            let held = sequence.tokens().len();
            // The last one is for the first guess.
            let behind = (known.len() - 1 - held).min(left);
            if behind > 1 {
                let tokens = &known[held..held + behind];
                let mut batch = [Step { sequence, tokens, want: Want::None }];
                self.model.engine().forward(&mut batch, &mut self.workspace)?;
                left -= behind;
            }
            if known.len() - 1 - candidate.guessed.draft.as_ref().map_or(0, |it| it.tokens().len()) > 1 {
                candidate.most = 0;
            }
        }
        Ok(())
    }

    /// So many guesses for each; the time of one pass, if there was any.
    pub(super) fn guess(
        &mut self,
        candidates: &mut [Candidate<'_>],
        counts: &[usize],
    ) -> Result<Option<Duration>, EngineError> {
        let longest = counts.iter().max().copied().unwrap_or(0);
        let begin = Instant::now();
        let mut texts: Vec<Vec<u32>> = candidates.iter().map(|candidate| candidate.known.to_vec()).collect();
        for round in 0..longest {
            let mut batch = Vec::new();
            let mut lanes = Vec::new();
            for (index, candidate) in candidates.iter_mut().enumerate() {
                if let (true, Some(sequence)) = (counts[index] > round, &mut candidate.guessed.draft) {
                    let held = sequence.tokens().len();
                    batch.push(Step { sequence, tokens: &texts[index][held..], want: Want::Last });
                    lanes.push(index);
                }
            }
            self.model.engine().forward(&mut batch, &mut self.workspace)?;
            let v = self.model.engine().config().vocab_size;
            for (row, index) in self.workspace.logits().chunks_exact(v).zip(lanes) {
                let candidate = &mut candidates[index];
                let mut logits = row[..self.vocab_size].to_vec();
                let (prompt, generated) = texts[index].split_at(candidate.prompt_tokens);
                let token = candidate.sampler.pick(&mut logits, prompt, generated);
                texts[index].push(token);
                candidate.guessed.tokens.push(token);
            }
        }
        Ok((longest > 0).then(|| begin.elapsed() / longest as u32))
    }
}
