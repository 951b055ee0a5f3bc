//! Speculative decoding: tokens are guessed, several at a time, and checked in one pass over the weights.
//!
//! Decoding is bound by reading the weights, so a pass over a few more rows costs little more than one over a single row. The
//! pass computes the logits behind every guess; tokens are then picked from them one after the other, as always, and the
//! first one that is not what was guessed ends it. So whatever was guessed, the same tokens come out as without guesses: not
//! only the same distribution (Leviathan et al. 2023, arXiv:2211.17192) but, with a row's logits the same in any batch, the
//! same answer for the same seed. Samplers, penalties and grammars see nothing of it.
//!
//! How many guesses pay is found while it runs ([`gain`]), down to none.

mod draft;
mod gain;
mod lookup;

use crate::{Engine, EngineError, Model, Sequence};
use draft::Draft;
use gain::{Chance, Cost};
use std::{sync::Arc, time::Duration};

/// Where guesses come from.
#[derive(Clone)]
pub enum Speculation {
    /// From what is already there: the tokens that followed the same few tokens before (prompt lookup; Saxena 2023).
    Lookup,
    /// From a smaller model with the same tokens.
    Draft(Arc<Model>),
}

impl std::fmt::Debug for Speculation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lookup => f.write_str("Lookup"),
            Self::Draft(model) => write!(f, "Draft({})", model.name()),
        }
    }
}

/// How guesses have fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guesses {
    /// Tokens that were guessed and checked.
    pub made: usize,
    /// Those that were picked.
    pub right: usize,
}

/// More are never made for one sequence: the chance that all come true falls with each.
pub(crate) const MOST_GUESSES: usize = 12;
/// Of a pass with guesses. More rows are no longer nearly free on any machine that was measured.
const MOST_ROWS: usize = 32;

/// What a sequence that is being generated has for it.
#[derive(Default)]
pub(crate) struct Guessed {
    /// Tokens that may follow the known ones.
    pub(crate) tokens: Vec<u32>,
    pub(crate) counts: Guesses,
    chance: Chance,
    /// The draft model's state, behind the target's or level with it.
    draft: Option<Sequence>,
}

impl Guessed {
    /// What became of the tokens: so many of `made` were picked.
    pub(crate) fn observe(&mut self, made: usize, right: usize) {
        self.counts.made += made;
        self.counts.right += right;
        self.chance.observe(made, right);
    }

    /// Memory of the draft's state.
    pub(crate) fn holds_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// Gives the draft's memory back.
    pub(crate) fn forget(&mut self) {
        self.tokens.clear();
        self.draft = None;
    }
}

/// A sequence that may get guesses: what is known of it, and how many may be used.
pub(crate) struct Candidate<'c> {
    pub(crate) known: &'c [u32],
    pub(crate) prompt_tokens: usize,
    pub(crate) sampler: crate::Sampler,
    pub(crate) most: usize,
    pub(crate) guessed: &'c mut Guessed,
}

/// Makes guesses for sequences that go through the same passes.
pub(crate) struct Speculator {
    source: Source,
    cost: Cost,
    /// Passes since there was a guess.
    without: usize,
}

enum Source {
    Lookup,
    Draft(Box<Draft>),
}

impl Speculator {
    /// For a model's sequences.
    ///
    /// # Errors
    /// A model with states that cannot be taken back; a draft model with other tokens.
    pub(crate) fn new(target: &Model, speculation: &Speculation) -> Result<Self, EngineError> {
        let refuse = |what: String| EngineError::Option { option: "speculation", what };
        if has_states(target.engine()) {
            let what = format!("the states of a {} model cannot take guesses back", target.engine().config().arch.name);
            return Err(refuse(what));
        }
        let source = match speculation {
            Speculation::Lookup => Source::Lookup,
            Speculation::Draft(model) => {
                if has_states(model.engine()) {
                    return Err(refuse(format!("the states of {} cannot take guesses back", model.name())));
                }
                Source::Draft(Box::new(Draft::new(target, Arc::clone(model))?))
            }
        };
        Ok(Self { source, cost: Cost::default(), without: 0 })
    }

    /// Bytes that a page of tokens takes in the draft model's cache.
    pub(crate) fn page_bytes(&self) -> usize {
        match &self.source {
            Source::Lookup => 0,
            Source::Draft(draft) => draft.page_bytes(),
        }
    }

    /// Guesses for each candidate, as many as are likely to pay. All have one token pending.
    pub(crate) fn guess(&mut self, candidates: &mut [Candidate<'_>]) -> Result<(), EngineError> {
        for candidate in candidates.iter_mut() {
            candidate.guessed.tokens.clear();
            candidate.most = candidate.most.min(MOST_GUESSES);
        }
        match &mut self.source {
            Source::Lookup => {
                for candidate in candidates.iter_mut() {
                    candidate.guessed.tokens = lookup::guess(candidate.known, candidate.most);
                    candidate.most = candidate.guessed.tokens.len();
                }
            }
            Source::Draft(draft) => draft.catch_up(candidates)?,
        }
        let chances: Vec<_> = candidates.iter().map(|it| (it.guessed.chance.value(), it.most)).collect();
        let most_rows = MOST_ROWS.saturating_sub(candidates.len());
        let mut counts = self.cost.allot(&chances, most_rows);
        match counts.iter().any(|&count| count > 0) {
            true => self.without = 0,
            false => {
                // Texts change, and so does the machine: once in a while it is tried again.
                self.without += 1;
                if self.without >= gain::PROBE_AFTER {
                    self.without = 0;
                    counts = chances.iter().map(|&(_, most)| most.min(gain::PROBE)).collect();
                }
            }
        }
        match &mut self.source {
            Source::Lookup => {
                for (candidate, count) in candidates.iter_mut().zip(counts) {
                    candidate.guessed.tokens.truncate(count);
                }
            }
            Source::Draft(draft) => {
                if let Some(per_token) = draft.guess(candidates, &counts)? {
                    self.cost.observe_draft(per_token);
                }
            }
        }
        Ok(())
    }

    /// What a pass of so many rows took, prompts not among them.
    pub(crate) fn observe(&mut self, rows: usize, took: Duration) {
        self.cost.observe(rows, took);
    }
}

fn has_states(engine: &Engine) -> bool {
    crate::state_bytes(engine.config()) > 0
}
