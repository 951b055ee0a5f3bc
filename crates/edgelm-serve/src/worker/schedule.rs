//! Continuous batching: which generations take part in each pass over the weights, and with how many rows.
//!
//! Every generation that has its prompt behind it gets a token in every pass. What [`Pace`] leaves goes to prompts, in order
//! of precedence (priority, then who began first), so that a long one is spread over many passes. Memory goes by precedence
//! too: who needs some pauses those behind it, and goes on with what they had; a paused generation computes its
//! tokens again later. What a generation says does not depend on any of this.

use super::{Event, Job, Seat, Shared, StopReason, TokenLogprob, pace::Pace, watchdog::Watchdog};
use crate::{
    backend::{Backend, Lanes},
    error::ApiError,
    metrics::{Ended, seconds},
    telemetry::Row,
};
use edgelm_engine::{EngineError, FinishReason, LaneId, Piece, Progress, Saving, StoreState};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Shorter waits are not worth a line in a trace.
const NOTED_WAIT: Duration = Duration::from_micros(50);

/// What runs.
pub(super) struct Schedule<'a> {
    shared: &'a Shared,
    backend: &'a dyn Backend,
    watchdog: &'a Watchdog,
    lanes: Box<dyn Lanes + 'a>,
    /// In order of precedence.
    active: Vec<Active>,
    pace: Pace,
    /// For how many the prompt counts that was begun last.
    urgency: f64,
    /// Until it fails.
    speculates: bool,
    /// As it was when it was last looked at.
    store: Cell<StoreState>,
}

/// A job that has begun.
struct Active {
    job: Job,
    started: Instant,
    choices: Vec<Choice>,
    /// The choice whose events go out; those of later ones are held back until it is over.
    reporting: usize,
    first_token: Option<Instant>,
}

struct Choice {
    state: State,
    held_back: VecDeque<Event>,
    generated: usize,
    last_token: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the first choice to have computed the prompt, or for a free lane.
    Waiting,
    Running {
        lane: LaneId,
        /// It has memory.
        holds: bool,
    },
    Over,
}

/// A lane's place in `active`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    job: usize,
    choice: usize,
}

/// Rows of a pass.
#[derive(Default)]
struct Plan {
    rows: Vec<(LaneId, usize)>,
    decoding: usize,
    prompt_rows: usize,
}

impl Plan {
    fn add(&mut self, lane: LaneId, rows: usize, is_prompt: bool) {
        self.rows.push((lane, rows));
        match is_prompt {
            true => self.prompt_rows += rows,
            false => self.decoding += 1,
        }
    }
}

impl<'a> Schedule<'a> {
    pub(super) fn new(shared: &'a Shared, seat: &'a Seat, lanes: Box<dyn Lanes + 'a>) -> Self {
        Self {
            shared,
            backend: &*seat.backend,
            watchdog: &seat.watchdog,
            lanes,
            active: Vec::new(),
            pace: Pace::default(),
            urgency: 1.0,
            speculates: true,
            store: Cell::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Writes something that is kept, and that nobody has touched for this time, to where it survives the process.
    pub(super) fn save_next(&mut self, untouched: Duration) -> Saving {
        // What is kept is a help to later ones, not worth the thread.
        catch_unwind(AssertUnwindSafe(|| self.lanes.save_next(untouched))).unwrap_or(Saving::Nothing)
    }

    /// Ends everything.
    pub(super) fn fail_all(&mut self, error: &ApiError) {
        while let Some(last) = self.active.len().checked_sub(1) {
            self.shared.metrics.cancelled.inc();
            self.fail(last, error.clone());
        }
    }

    /// Says to all that they have failed, when nothing else can be relied on.
    pub(super) fn lose(&mut self, error: &ApiError) {
        self.active.drain(..).for_each(|active| active.job.fail(error.clone()));
    }

    /// One pass, with all that comes before and after it.
    pub(super) fn pass(&mut self) {
        self.drop_unwanted();
        let planning = Instant::now();
        let mut plan = self.plan();
        self.note(&plan.rows, planning, "schedule", &json!({}));
        self.show();
        if plan.rows.is_empty() {
            if !self.active.is_empty() {
                // The first in precedence always has room, or it would have been refused.
                tracing::error!(memory = ?self.lanes.memory(), "nothing can go on");
                self.fail(0, ApiError::Internal);
            }
            return;
        }
        let waiting = Instant::now();
        let turn = self.shared.turns.take(&self.shared.account);
        let started = Instant::now();
        if started - waiting > NOTED_WAIT {
            self.note(&plan.rows, waiting, "wait for another model", &json!({}));
        }
        self.watchdog.begin(turn.number(), self.active.iter().map(|active| active.job.events.clone()).collect());
        if plan.prompt_rows == 0 {
            let guessing = Instant::now();
            self.speculate(&mut plan);
            if plan.rows.iter().any(|(_, rows)| *rows > 1) {
                self.note(&plan.rows, guessing, "guess", &json!({}));
            }
        }
        self.forward(&plan);
        drop(turn);
        if self.watchdog.is_abandoned() {
            tracing::warn!(time_s = seconds(started.elapsed()), "a pass that hung has returned; its thread ends");
            // Their clients have been told, and another thread runs the model.
            self.active.clear();
            return;
        }
        if self.watchdog.end() {
            tracing::warn!(time_s = seconds(started.elapsed()), "a pass that hung has returned");
            self.shared.metrics.ready.set(1);
            // Their clients have been told.
            while let Some(last) = self.active.len().checked_sub(1) {
                self.close(last);
            }
            return;
        }
        let took = started.elapsed();
        self.pace.observe(plan.decoding, plan.prompt_rows, took);
        self.shared.metrics.pass(plan.rows.len(), plan.rows.iter().map(|(_, rows)| rows).sum(), took);
    }

    /// Adds guesses to a plan. What fails here has no part in any answer, so it is not tried again and all else goes on.
    fn speculate(&mut self, plan: &mut Plan) {
        if !self.speculates {
            return;
        }
        let alone = plan.rows.clone();
        let why = match catch_unwind(AssertUnwindSafe(|| self.lanes.speculate(&mut plan.rows))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a panic".to_owned(),
        };
        tracing::error!(why, "speculation failed; going on without it");
        plan.rows = alone;
        self.speculates = false;
    }

    /// Ends jobs whose client has left or whose time is over.
    fn drop_unwanted(&mut self) {
        for job in (0..self.active.len()).rev() {
            if !self.shared.still_wanted(&self.active[job].job) {
                self.close(job);
            }
        }
    }

    /// Tells the metrics what is there now.
    pub(super) fn show(&self) {
        let metrics = &self.shared.metrics;
        let parts = &self.shared.parts;
        parts.running.set(&metrics.running, i64::try_from(self.active.len()).unwrap_or(i64::MAX));
        let memory = self.lanes.memory();
        metrics.memory(parts, &memory);
        self.tell_of_store(&memory.store);
    }

    /// A disk that is full, or forgets, is the operator's business; no request fails of it.
    fn tell_of_store(&self, now: &StoreState) {
        let before = self.store.replace(*now);
        if before.failed_writes == 0 && now.failed_writes > 0 {
            tracing::warn!(
                "a page could not be written to the KV store: is the disk full? Kept prompts are lost instead"
            );
        }
        if now.bad_reads > before.bad_reads {
            let pages = now.bad_reads - before.bad_reads;
            tracing::warn!(pages, "pages came back from the KV store changed; they were not used");
        }
    }

    /// Running lanes, in order of precedence.
    fn places(&self) -> Vec<(Place, LaneId)> {
        let jobs = self.active.iter().enumerate();
        let places = jobs.flat_map(|(job, active)| {
            active.choices.iter().enumerate().filter_map(move |(choice, it)| match it.state {
                State::Running { lane, .. } => Some((Place { job, choice }, lane)),
                State::Waiting | State::Over => None,
            })
        });
        places.collect()
    }

    fn plan(&mut self) -> Plan {
        let places = self.places();
        let wishes: Vec<_> = places.iter().map(|&(_, lane)| (lane, self.lanes.pending(lane))).collect();
        let decoding = wishes.iter().filter(|(_, pending)| *pending == 1).count();
        let free = self.shared.config.parallel.max(1).saturating_sub(places.len());
        let waiting = places.len() - decoding + self.shared.queue().len().min(free);
        if waiting == 0 {
            self.urgency = 1.0;
        }
        let mut left = self.pace.prompt_rows(decoding, waiting, self.urgency);
        let mut plan = Plan::default();
        // Nearly always; else it goes lane by lane.
        let is_room_for_all = self.lanes.reserve(&wishes);
        for (place, lane) in places {
            // Not those of above: it may have been paused meanwhile.
            let pending = self.lanes.pending(lane);
            let rows = if pending == 1 { 1 } else { pending.min(left) };
            if rows > 0 && (is_room_for_all || self.make_room(&mut plan, place, lane, pending)) {
                self.set_holds(place, true);
                plan.add(lane, rows, pending > 1);
                left -= if pending > 1 { rows } else { 0 };
            }
        }
        while left > 0 && self.places().len() < self.shared.config.parallel.max(1) {
            let Some((place, lane)) = self.begin_next() else { break };
            let pending = self.lanes.pending(lane);
            // Whoever comes after it has to wait for memory as well.
            if !self.make_room(&mut plan, place, lane, pending) {
                break;
            }
            self.set_holds(place, true);
            let rows = pending.min(left);
            plan.add(lane, rows, true);
            left -= rows;
        }
        plan
    }

    /// Memory for all that a lane has pending, at the expense of lanes behind it. False where it has to wait.
    fn make_room(&mut self, plan: &mut Plan, place: Place, lane: LaneId, pending: usize) -> bool {
        loop {
            let mut rows = plan.rows.clone();
            rows.push((lane, pending));
            if self.lanes.reserve(&rows) {
                return true;
            }
            let mut holders = self.places().into_iter().filter(|(place, _)| self.holds(*place));
            let last =
                holders.next_back().filter(|(holder, _)| (holder.job, holder.choice) > (place.job, place.choice));
            let Some((victim, its_lane)) = last else {
                // Nobody behind it has anything: those in front need it all.
                match self.holds(place) {
                    true => self.pause(plan, place, lane),
                    // It has computed nothing, but what it took over of a kept beginning could not go for others.
                    false => self.lanes.pause(lane),
                }
                return false;
            };
            self.pause(plan, victim, its_lane);
        }
    }

    fn pause(&mut self, plan: &mut Plan, place: Place, lane: LaneId) {
        self.lanes.pause(lane);
        self.set_holds(place, false);
        self.shared.metrics.preemptions.inc();
        plan.rows.retain(|(other, _)| *other != lane);
    }

    fn holds(&self, place: Place) -> bool {
        matches!(self.active[place.job].choices[place.choice].state, State::Running { holds: true, .. })
    }

    fn set_holds(&mut self, place: Place, value: bool) {
        if let State::Running { holds, .. } = &mut self.active[place.job].choices[place.choice].state {
            *holds = value;
        }
    }

    /// Begins what is next: another choice of a job whose prompt is computed, else a job that waits.
    fn begin_next(&mut self) -> Option<(Place, LaneId)> {
        loop {
            let place = match self.next_choice() {
                Some(place) => place,
                None => Place { job: self.insert(self.shared.next()?), choice: 0 },
            };
            let active = &mut self.active[place.job];
            match self.lanes.begin(&active.job.prompt, active.job.choices[place.choice].clone()) {
                Ok(lane) => {
                    active.choices[place.choice].state = State::Running { lane, holds: false };
                    let pending = self.lanes.pending(lane);
                    if pending > 0 {
                        self.urgency = self.pace.urgency(active.job.received.elapsed(), pending);
                        return Some((place, lane));
                    }
                    // Nothing was asked for.
                    self.take(lane);
                }
                Err(error) => self.fail_by(place.job, &error),
            }
        }
    }

    fn next_choice(&self) -> Option<Place> {
        self.active.iter().enumerate().filter(|(_, active)| active.first_token.is_some()).find_map(|(job, active)| {
            let choice = active.choices.iter().position(|choice| choice.state == State::Waiting)?;
            Some(Place { job, choice })
        })
    }

    fn insert(&mut self, job: Job) -> usize {
        let waiting = || Choice { state: State::Waiting, held_back: VecDeque::new(), generated: 0, last_token: None };
        let metrics = &self.shared.metrics;
        job.journey.started();
        metrics.queue_time.observe(seconds(job.received.elapsed()));
        metrics.prompt_tokens.inc_by(u64::try_from(job.prompt.len()).unwrap_or(u64::MAX));
        let choices = job.choices.iter().map(|_| waiting()).collect();
        let at = self.active.partition_point(|active| active.job.priority <= job.priority);
        let active = Active { job, started: Instant::now(), choices, reporting: 0, first_token: None };
        self.active.insert(at, active);
        at
    }

    /// The pass itself; then each lane's token. Who makes the engine panic fails alone.
    fn forward(&mut self, plan: &Plan) {
        // Lanes are as they were when a pass fails, so it can be tried again with each alone.
        let begin = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| self.lanes.forward(&plan.rows))) {
            Ok(Ok(())) => {
                self.note_pass(&plan.rows, begin);
                plan.rows.iter().for_each(|&(lane, _)| self.take(lane));
            }
            _ if plan.rows.len() == 1 => self.try_alone(plan.rows[0]),
            _ => {
                tracing::warn!(lanes = plan.rows.len(), "a pass failed; trying each of its requests alone");
                plan.rows.iter().for_each(|&share| self.try_alone(share));
            }
        }
    }

    fn try_alone(&mut self, share: (LaneId, usize)) {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.lanes.forward(&[share])));
        match outcome {
            Ok(Ok(())) => {
                self.note_pass(&[share], begin);
                self.take(share.0);
            }
            Ok(Err(error)) => self.abandon(share.0, Some(&error)),
            Err(_) => self.abandon(share.0, None),
        }
    }

    fn take(&mut self, lane: LaneId) {
        let begin = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| self.lanes.take(lane))) {
            Ok(Ok(progress)) => {
                self.note_pick(lane, &progress, begin);
                self.report(lane, progress);
            }
            Ok(Err(error)) => self.abandon(lane, Some(&error)),
            Err(_) => self.abandon(lane, None),
        }
    }

    /// The requests among these lanes that are traced, each with the rows of its lanes.
    fn traced<'b>(&'b self, rows: &'b [(LaneId, usize)]) -> impl Iterator<Item = (&'b Active, &'b Choice, usize)> {
        let is_traced = self.active.iter().any(|active| active.job.journey.timeline().is_some());
        let places = if is_traced { self.places() } else { Vec::new() };
        places.into_iter().filter_map(move |(place, lane)| {
            let active = &self.active[place.job];
            active.job.journey.timeline()?;
            let (_, count) = rows.iter().find(|(other, _)| *other == lane)?;
            Some((active, &active.choices[place.choice], *count))
        })
    }

    /// Something that these lanes have waited for together.
    fn note(&self, rows: &[(LaneId, usize)], begin: Instant, name: &'static str, args: &Value) {
        for (active, _, _) in self.traced(rows) {
            if let Some(timeline) = active.job.journey.timeline() {
                timeline.add(name, Row::Passes, begin, args.clone());
            }
        }
    }

    fn note_pass(&self, rows: &[(LaneId, usize)], begin: Instant) {
        let took = begin.elapsed();
        let all: usize = rows.iter().map(|(_, rows)| rows).sum();
        for (active, choice, own) in self.traced(rows) {
            let Some(timeline) = active.job.journey.timeline() else { continue };
            let name = if choice.generated == 0 { "prefill" } else { "decode" };
            let args = json!({"rows": own, "pass_rows": all, "pass_sequences": rows.len()});
            timeline.add_for(name, Row::Passes, begin, took, args);
        }
    }

    fn note_pick(&self, lane: LaneId, progress: &Progress, begin: Instant) {
        let took = begin.elapsed();
        for (active, _, _) in self.traced(&[(lane, 0)]) {
            let Some(timeline) = active.job.journey.timeline() else { continue };
            let tokens = progress.pieces.iter().filter(|piece| piece.token.is_some()).count();
            if tokens == 0 && progress.finished.is_none() {
                continue;
            }
            timeline.add_for("pick", Row::Picks, begin, took, json!({"tokens": tokens}));
            if !progress.constraint_time.is_zero() {
                timeline.add_for("constraint", Row::Picks, begin, progress.constraint_time, json!({}));
            }
        }
    }

    /// Fails the job of a lane that made the engine fail; no error means that it panicked.
    fn abandon(&mut self, lane: LaneId, error: Option<&EngineError>) {
        self.lanes.abandon(lane);
        let Some(place) = self.place(lane) else { return };
        self.active[place.job].choices[place.choice].state = State::Over;
        match error {
            Some(error) => self.fail_by(place.job, error),
            None => {
                tracing::error!("the engine panicked; the request fails, the server goes on");
                self.shared.metrics.engine_panics.inc();
                self.fail(place.job, ApiError::Internal);
            }
        }
    }

    fn place(&self, lane: LaneId) -> Option<Place> {
        self.places().into_iter().find(|(_, other)| *other == lane).map(|(place, _)| place)
    }

    fn fail_by(&mut self, job: usize, error: &EngineError) {
        let error = ApiError::from_engine(error, self.active[job].job.prompt_param);
        self.fail(job, error);
    }

    fn fail(&mut self, job: usize, error: ApiError) {
        self.active[job].job.fail(error);
        self.close(job);
    }

    /// Takes a job out, finished or not.
    fn close(&mut self, job: usize) {
        let active = self.active.remove(job);
        for choice in &active.choices {
            if let State::Running { lane, .. } = choice.state {
                self.end(lane);
            }
        }
        let metrics = &self.shared.metrics;
        metrics.duration.observe(seconds(active.job.received.elapsed()));
        if let Some(first_token) = active.first_token {
            metrics.request_ended(&Ended {
                prompt_tokens: active.job.prompt.len(),
                generated_tokens: active.choices.iter().map(|choice| choice.generated).sum(),
                choices: active.choices.len(),
                max_tokens: active.job.choices.first().and_then(|options| options.max_tokens),
                prefill: first_token.saturating_duration_since(active.started),
                decode: first_token.elapsed(),
            });
        }
        self.shared.job_took(active.started.elapsed());
    }

    fn end(&mut self, lane: LaneId) {
        // What a lane leaves behind is a help to later ones, not worth the process.
        if catch_unwind(AssertUnwindSafe(|| self.lanes.end(lane))).is_err() {
            self.shared.metrics.engine_panics.inc();
            self.lanes.abandon(lane);
        }
    }

    /// Sends out what a lane brought forth.
    fn report(&mut self, lane: LaneId, progress: Progress) {
        let Some(Place { job, choice }) = self.place(lane) else { return };
        let active = &mut self.active[job];
        let metrics = &self.shared.metrics;
        if choice == 0 && active.first_token.is_none() && !(progress.pieces.is_empty() && progress.finished.is_none()) {
            let cached = self.lanes.cached_tokens(lane);
            active.job.aside.cached_tokens.store(cached, Ordering::Relaxed);
            active.job.journey.prompt_done(cached);
            let now = Instant::now();
            metrics.prompt_done(active.job.prompt.len(), cached, now.saturating_duration_since(active.started));
            active.first_token = Some(now);
        }
        for piece in &progress.pieces {
            if piece.token.is_some() {
                let now = Instant::now();
                let it = &mut active.choices[choice];
                it.generated += 1;
                match it.last_token.replace(now) {
                    // A later choice's first token has waited for the first choice: neither kind of latency.
                    None if choice > 0 => {}
                    None => metrics.time_to_first_token.observe(seconds(now - active.job.received)),
                    Some(before) => metrics.inter_token.observe(seconds(now - before)),
                }
                active.job.journey.token();
                metrics.generated_tokens.inc();
            }
            let logprob = token_logprob(self.backend, piece);
            active.send(choice, Event::Piece { text: piece.text.clone(), logprob });
        }
        let Some(reason) = progress.finished else { return };
        let reason = match reason {
            FinishReason::Stop => StopReason::Stop,
            // Nobody cancels inside the engine: that is what `end` is for.
            FinishReason::Length | FinishReason::Cancelled => StopReason::Length,
        };
        let generated_tokens = active.choices[choice].generated;
        active.send(choice, Event::Finished { reason, generated_tokens });
        active.choices[choice].state = State::Over;
        active.report_next();
        let is_over = active.choices.iter().all(|choice| choice.state == State::Over);
        metrics.guesses(progress.guesses);
        self.end(lane);
        if is_over {
            self.shared.metrics.finished(reason);
            self.close(job);
        }
    }
}

impl Active {
    fn send(&mut self, choice: usize, event: Event) {
        match choice == self.reporting {
            // An error means that nobody listens any more; the next pass is without it.
            true => _ = self.job.events.send(event),
            false => self.choices[choice].held_back.push_back(event),
        }
    }

    /// Goes on to the next choice where this one is over.
    fn report_next(&mut self) {
        while self.choices.get(self.reporting).is_some_and(|choice| choice.state == State::Over) {
            self.reporting += 1;
            let Some(next) = self.choices.get_mut(self.reporting) else { break };
            for event in next.held_back.drain(..) {
                let _ = self.job.events.send(event);
            }
        }
    }
}

fn token_logprob(backend: &dyn Backend, piece: &Piece) -> Option<TokenLogprob> {
    let (token, logprob) = (piece.token?, piece.logprob?);
    let top = piece.top_logprobs.iter().map(|&(token, value)| (backend.token_text(token), value)).collect();
    Some(TokenLogprob { token: backend.token_text(token), logprob, top })
}
