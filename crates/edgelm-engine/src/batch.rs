//! Several generations that share every pass over the weights, one bounded memory and the beginnings of their prompts.
//!
//! This is the mechanism; who runs when is the caller's: it begins lanes, gives each a number of rows of the next pass,
//! reserves the memory for them, and takes what came out. A lane that has to make room is paused: it loses its memory, not
//! its tokens, and computes what it lacks when it goes on. None of this changes what a lane generates.

use crate::{
    EngineError, FinishReason, GenerateOptions, Guesses, KvStore, Model, Piece, Speculation, Step, StoreState, Want,
    Workspace,
    block::State,
    prefix::{Match, PrefixCache, Saving},
    running::Running,
    speculation::{MOST_GUESSES, Speculator},
};
use edgelm_kernels::{KvCache, KvDtype};
use std::{
    collections::BTreeMap,
    ops::{ControlFlow, Range},
    sync::Arc,
    time::{Duration, Instant},
};

const PAGE: usize = KvCache::PAGE_TOKENS;

/// Names a lane; never used twice in a batch.
pub type LaneId = u64;

/// What all lanes of a batch have in common.
#[derive(Clone, Default)]
pub struct BatchOptions {
    /// Context limit; `None` = the model's own.
    pub context: Option<usize>,
    /// Cache format; `None` = the engine's default.
    pub kv: Option<KvDtype>,
    /// Bytes for keys, values and states of all lanes and of kept prompts together; `None` = unlimited.
    pub kv_budget: Option<usize>,
    /// Where beginnings go that memory has no room for, and where they come back from, also after a restart.
    pub store: Option<Arc<KvStore>>,
    /// Guess tokens; `None` = do not.
    pub speculation: Option<Speculation>,
}

/// Memory for keys, values and states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvMemory {
    /// Of lanes, and of beginnings that are kept for later.
    pub used_bytes: usize,
    /// The kept part, shared with lanes or not.
    pub kept_bytes: usize,
    /// Limit, if any.
    pub budget_bytes: Option<usize>,
    /// The file that beginnings go to; zeros where there is none.
    pub store: StoreState,
}

/// What a lane has brought forth since it was last asked.
#[derive(Debug, Default)]
pub struct Progress {
    /// In order. A piece without a token is text that was held back to the end.
    pub pieces: Vec<Piece>,
    /// Why it is over, once it is.
    pub finished: Option<FinishReason>,
    /// How the lane's guesses have fared since it began.
    pub guesses: Guesses,
    /// What its constraint took of the time since it was last asked.
    pub constraint_time: Duration,
}

/// Generations in progress. Not for several threads at once.
pub struct Batch<'a> {
    model: &'a Model,
    options: BatchOptions,
    kv: KvDtype,
    lanes: BTreeMap<LaneId, Lane<'a>>,
    next: LaneId,
    prefixes: PrefixCache,
    page_bytes: usize,
    /// Of a draft model.
    draft_page_bytes: usize,
    state_bytes: usize,
    workspace: Workspace,
    speculator: Option<Speculator>,
}

struct Lane<'a> {
    running: Running<'a>,
    /// Leading pages that the tree of beginnings holds too.
    shared_pages: usize,
    /// So is the part of a page behind them; its own is made at the next write.
    is_tail_shared: bool,
    /// Prompt tokens that were there already.
    cached: usize,
    /// Not since it was last given rows: what came back may have to go again before its turn.
    may_fetch: bool,
    /// Where a model with states has one taken: a beginning can only be shared there.
    snapshots: Vec<usize>,
    /// Its logits among those of the last pass.
    rows: Option<Range<usize>>,
    is_prompt_kept: bool,
    /// It has been in a pass.
    has_begun: bool,
}

impl Lane<'_> {
    /// So many of its first tokens are in the tree of beginnings.
    fn shares(&mut self, tokens: usize) {
        self.shared_pages = tokens / PAGE;
        self.is_tail_shared = !tokens.is_multiple_of(PAGE);
    }

    fn held(&self) -> usize {
        self.running.sequence().tokens().len()
    }

    /// Pages of its own, once it has written up to `tokens`.
    fn own_pages(&self, tokens: usize) -> usize {
        tokens.div_ceil(PAGE).saturating_sub(self.shared_pages)
    }
}

impl<'a> Batch<'a> {
    /// Errors where the context is longer than the model's, or the budget does not even hold two pages.
    pub fn new(model: &'a Model, options: BatchOptions) -> Result<Self, EngineError> {
        let engine = model.engine();
        let kv = options.kv.unwrap_or_else(|| engine.default_kv());
        let page_bytes = KvCache::page_bytes(&engine.kv_shapes(), kv);
        let state_bytes = engine.sequence(kv).states().map_or(0, |states| states.iter().map(State::bytes).sum());
        let speculation = options.speculation.as_ref();
        let speculator = speculation.map(|speculation| Speculator::new(model, speculation)).transpose()?;
        let batch = Self {
            draft_page_bytes: speculator.as_ref().map_or(0, Speculator::page_bytes),
            speculator,
            model,
            kv,
            lanes: BTreeMap::new(),
            next: 0,
            prefixes: PrefixCache::new(page_bytes, state_bytes, options.store.clone()),
            page_bytes,
            state_bytes,
            workspace: Workspace::default(),
            options,
        };
        match (batch.capacity(), batch.options.kv_budget) {
            (Some(0), Some(budget_bytes)) => Err(EngineError::KvBudget { tokens: 1, budget_bytes, capacity: 0 }),
            _ => Ok(batch),
        }
    }

    /// Tokens that one lane can hold when it is alone; `None` = any number.
    pub fn capacity(&self) -> Option<usize> {
        let budget = self.options.kv_budget?;
        let page_bytes = self.page_bytes + self.draft_page_bytes;
        let pages = budget.saturating_sub(self.state_bytes).checked_div(page_bytes);
        match pages {
            // A model without attention: the state is all there is.
            None => (budget < self.state_bytes).then_some(0),
            // One page may be held twice: by what was kept of a prompt, and by who goes on from it.
            Some(pages) => Some(pages.saturating_sub(1) * PAGE),
        }
    }

    /// Memory in use.
    pub fn memory(&self) -> KvMemory {
        let tail = |lane: &Lane<'_>| if lane.is_tail_shared { self.page_bytes } else { 0 };
        // A lane that holds nothing has states, but zeros that nobody has touched take no memory.
        let lanes = self.lanes.values().filter(|lane| lane.held() > 0);
        let own: usize =
            lanes.map(|lane| self.lane_bytes(lane, lane.held(), lane.running.holds_draft()) - tail(lane)).sum();
        KvMemory {
            store: self.options.store.as_ref().map(|store| store.state()).unwrap_or_default(),
            used_bytes: self.prefixes.bytes() + own,
            kept_bytes: self.prefixes.bytes(),
            budget_bytes: self.options.kv_budget,
        }
    }

    fn lane_bytes(&self, lane: &Lane<'_>, tokens: usize, holds_draft: bool) -> usize {
        let draft = if holds_draft { tokens.div_ceil(PAGE) * self.draft_page_bytes } else { 0 };
        lane.own_pages(tokens) * self.page_bytes + self.state_bytes + draft
    }

    /// A new lane. Nothing is computed yet; what is kept of its prompt's beginning is taken over when rows are asked for.
    ///
    /// `options.context`, `kv`, `speculation` and `beams` are the batch's: they must not be set. Errors also on what
    /// [`Model::generate`] refuses, and where the lane could not hold its tokens if it were alone.
    pub fn begin(&mut self, prompt: &[u32], options: GenerateOptions) -> Result<LaneId, EngineError> {
        for (option, is_set) in [
            ("context", options.context.is_some()),
            ("kv", options.kv.is_some()),
            ("speculation", options.speculation.is_some()),
            ("beams", options.beams > 1),
        ] {
            if is_set {
                let what = "cannot be chosen for one of several generations".to_owned();
                return Err(EngineError::Option { option, what });
            }
        }
        let options = GenerateOptions { context: self.options.context, kv: Some(self.kv), ..options };
        if let (Some(capacity), Some(budget_bytes)) = (self.capacity(), self.options.kv_budget) {
            let tokens = prompt.len() + options.max_tokens.unwrap_or(1);
            if tokens > capacity {
                return Err(EngineError::KvBudget { tokens, budget_bytes, capacity });
            }
        }
        let sequence = self.model.sequence(&options);
        let tokenizer = self.model.text_side(&options)?;
        let running = Running::new(self.model.engine(), tokenizer, sequence, prompt, options)?;
        let id = self.next;
        self.next += 1;
        let lane = Lane {
            running,
            shared_pages: 0,
            is_tail_shared: false,
            cached: 0,
            may_fetch: true,
            snapshots: Vec::new(),
            rows: None,
            is_prompt_kept: false,
            has_begun: false,
        };
        self.lanes.insert(id, lane);
        Ok(id)
    }

    /// Rows that a lane can use in the next pass: 1 while it decodes, more where part of its prompt (or of what it lost
    /// in a pause) has to be computed, 0 when it is over. Takes over what became known of its beginning.
    pub fn pending(&mut self, id: LaneId) -> usize {
        let Some(lane) = self.lanes.get_mut(&id) else { return 0 };
        let pending = lane.running.pending();
        if pending <= 1 {
            return pending;
        }
        let adapter = lane.running.options().adapter.clone();
        if self.options.store.is_some() && lane.may_fetch {
            lane.may_fetch = false;
            let known = lane.running.known().to_vec();
            let budget = self.kept_budget();
            self.prefixes.fetch(adapter.as_ref(), &known[..known.len() - 1], budget);
        }
        let Some(lane) = self.lanes.get_mut(&id) else { return 0 };
        let known = lane.running.known();
        let found = self.prefixes.find(adapter.as_ref(), &known[..known.len() - 1]);
        if found.tokens > lane.held() {
            let past = self.prefixes.past(&found);
            lane.running.resume_from(self.model.engine().resume(self.kv, adapter, &past));
            lane.shares(found.tokens);
            // A lane that was paused comes back to what it had itself.
            if !lane.has_begun {
                self.prefixes.is_taken(&found);
            }
            if lane.cached < found.tokens {
                lane.cached = found.tokens.min(lane.running.prompt_tokens() - 1);
            }
        }
        if self.state_bytes > 0 {
            // At the last page of the prompt, for who asks the same again; and where another sequence went a different way,
            // for the next to share that beginning: it is probably an instruction that many prompts have.
            let last = (lane.running.prompt_tokens() - 1) / PAGE * PAGE;
            lane.snapshots = vec![found.seen / PAGE * PAGE, last];
            let held = lane.held();
            lane.snapshots.retain(|&at| at > held);
        }
        let until_snapshot = lane.snapshots.iter().min().map_or(usize::MAX, |at| at - lane.held());
        lane.running.pending().min(until_snapshot)
    }

    /// What the tree of beginnings may take beside what lanes hold.
    fn kept_budget(&self) -> usize {
        let Some(budget) = self.options.kv_budget else { return usize::MAX };
        let memory = self.memory();
        budget.saturating_sub(memory.used_bytes - memory.kept_bytes)
    }

    /// Writes a page to the store that it does not have yet and that nobody has touched for this time. For when nothing else is
    /// to be done: what is in the store survives the process.
    pub fn save_next(&mut self, untouched: Duration) -> Saving {
        self.prefixes.save_next(untouched)
    }

    /// Prompt tokens of a lane that were not computed, but taken from what was kept.
    pub fn cached_tokens(&self, id: LaneId) -> usize {
        self.lanes.get(&id).map_or(0, |lane| lane.cached)
    }

    /// Makes sure that a pass with these rows fits the budget, giving up kept beginnings for it, oldest first. False where
    /// that is not enough: then lanes have to be paused, or wait.
    pub fn reserve(&mut self, plan: &[(LaneId, usize)]) -> bool {
        self.make_room(plan, false)
    }

    /// The same, where lanes with rows get a draft model's state if they have none and `drafts` are wanted.
    fn make_room(&mut self, plan: &[(LaneId, usize)], drafts: bool) -> bool {
        let Some(budget) = self.options.kv_budget else { return true };
        let rows = |id: &LaneId| plan.iter().find(|(other, _)| other == id).map_or(0, |(_, rows)| *rows);
        let bytes = |(id, lane): (&LaneId, &Lane<'_>)| {
            let rows = rows(id);
            self.lane_bytes(lane, lane.held() + rows, lane.running.holds_draft() || drafts && rows > 0)
        };
        let lanes = self.lanes.iter().filter(|(id, lane)| lane.held() > 0 || rows(id) > 0);
        let own: usize = lanes.map(bytes).sum();
        while self.prefixes.bytes() + own > budget {
            if !self.prefixes.evict() {
                return false;
            }
        }
        true
    }

    /// Adds rows to a plan, for guesses at the tokens behind those that are about to be picked, where they are likely to pay
    /// and there is memory for them. Nothing where the plan has part of a prompt: that is what the time is for then.
    pub fn speculate(&mut self, plan: &mut Vec<(LaneId, usize)>) -> Result<(), EngineError> {
        let Some(mut speculator) = self.speculator.take() else { return Ok(()) };
        let outcome = self.guess(&mut speculator, plan);
        self.speculator = Some(speculator);
        outcome
    }

    fn guess(&mut self, speculator: &mut Speculator, plan: &mut Vec<(LaneId, usize)>) -> Result<(), EngineError> {
        let is_decoding =
            |(id, _): &(LaneId, usize)| self.lanes.get(id).is_some_and(|lane| lane.running.pending() == 1);
        // A draft model's states grow while it guesses, so there must be room for the most it may.
        let longest: Vec<_> = plan.iter().map(|&(id, rows)| (id, rows + MOST_GUESSES)).collect();
        if !plan.iter().all(is_decoding) || !self.make_room(&longest, true) {
            return Ok(());
        }
        let lanes = self.lanes.iter_mut().filter(|(id, _)| plan.iter().any(|(other, _)| other == *id));
        let mut candidates: Vec<_> = lanes.filter_map(|(_, lane)| lane.running.candidate()).collect();
        speculator.guess(&mut candidates)?;
        for (id, rows) in plan {
            *rows += self.lanes.get(id).map_or(0, |lane| lane.running.guessed_rows());
        }
        Ok(())
    }

    /// One pass. Every lane gets as many rows as the plan says, or what is pending and guessed where that is less.
    ///
    /// An error, or a panic, leaves every lane where it was.
    pub fn forward(&mut self, plan: &[(LaneId, usize)]) -> Result<(), EngineError> {
        let (mut wanted, mut is_decoding) = (0, true);
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(plan.len());
        let mut rows = Vec::new();
        for (&id, lane) in &mut self.lanes {
            lane.rows = None;
            let Some(&(_, count)) = plan.iter().find(|(other, _)| *other == id) else { continue };
            let pending = lane.running.pending();
            if count.min(pending) == 0 {
                continue;
            }
            is_decoding &= pending == 1;
            let step = lane.running.step(count);
            let logits = match step.want {
                Want::All => step.tokens.len(),
                Want::Last => 1,
                Want::None | Want::Hidden => 0,
            };
            if logits > 0 {
                rows.push((id, wanted..wanted + logits));
                wanted += logits;
            }
            steps.push(step);
        }
        let begin = Instant::now();
        self.model.engine().forward(&mut steps, &mut self.workspace)?;
        if let (Some(speculator), true) = (&mut self.speculator, is_decoding) {
            speculator.observe(steps.iter().map(|step| step.tokens.len()).sum(), begin.elapsed());
        }
        for (id, _) in plan {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.is_tail_shared = false;
                lane.may_fetch = true;
                lane.has_begun = true;
            }
        }
        for (id, rows) in rows {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.rows = Some(rows);
            }
        }
        Ok(())
    }

    /// Picks a lane's token, and those behind it that were guessed right, if the last pass computed the logits for them. The lane stays until [`Batch::end`].
    pub fn take(&mut self, id: LaneId) -> Result<Progress, EngineError> {
        let mut progress = Progress::default();
        self.keep_beginning(id);
        let v = self.model.engine().config().vocab_size;
        if let Some(lane) = self.lanes.get_mut(&id) {
            let constraint_time = lane.running.constraint_time();
            if let Some(rows) = lane.rows.take() {
                let logits = &self.workspace.logits()[rows.start * v..rows.end * v];
                lane.running.pick(logits, &mut |piece| {
                    progress.pieces.push(piece.clone());
                    ControlFlow::Continue(())
                })?;
            }
            progress.finished = lane.running.finish_reason();
            progress.guesses = lane.running.guesses();
            progress.constraint_time = lane.running.constraint_time().saturating_sub(constraint_time);
        }
        Ok(progress)
    }

    /// Keeps a lane's prompt as soon as it is computed, not only at the end: others may wait for the same.
    fn keep_beginning(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let held = lane.held();
        let is_snapshot = lane.snapshots.contains(&held);
        let is_prompt = !lane.is_prompt_kept && held >= lane.running.prompt_tokens();
        if is_prompt {
            lane.is_prompt_kept = true;
        }
        if is_snapshot || is_prompt {
            self.keep(id);
        }
    }

    fn keep(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let adapter = lane.running.options().adapter.clone();
        let shared: Match = self.prefixes.insert(adapter.as_ref(), lane.running.sequence());
        let past = self.prefixes.past(&shared);
        lane.shares(shared.tokens);
        lane.running.share_beginning(self.model.engine(), &past);
        // Pages only changed their owner, but states were copied.
        while self.options.kv_budget.is_some_and(|budget| self.memory().used_bytes > budget) && self.prefixes.evict() {}
    }

    /// Takes a lane's memory away; what it holds is kept as long as there is room. It goes on when it gets rows again.
    pub fn pause(&mut self, id: LaneId) {
        self.keep(id);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let sequence = self.model.sequence(lane.running.options());
        lane.running.resume_from(sequence);
        lane.shares(0);
        lane.rows = None;
    }

    /// Ends a lane, finished or not. What it holds is kept as long as there is room.
    pub fn end(&mut self, id: LaneId) {
        self.keep(id);
        self.lanes.remove(&id);
    }

    /// Ends a lane whose state may be wrong: nothing of it is kept.
    pub fn abandon(&mut self, id: LaneId) {
        self.lanes.remove(&id);
    }
}
