//! From a checked request to a running one: slot, prompt, context check, queue.

use crate::{
    ServeError,
    access::Meter,
    admission::{Admission, Slot},
    api::Parameters,
    backend::Backend,
    caller::Caller,
    error::ApiError,
    health::{Probe, ProbeText},
    metrics::Metrics,
    models::Lease,
    overflow::{Overflow, Source, Summaries},
    telemetry::Journey,
    turns::Turns,
    worker::{Aside, Event, Job, StopReason, Worker, WorkerConfig},
};
use edgelm_engine::{EngineError, GenerateOptions, Grammar};
use std::{
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A loaded model behind its queue.
pub(crate) struct Service {
    admission: Admission,
    worker: Worker,
    limits: Limits,
    summaries: Summaries,
    beside: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

/// What the server allows a request, whatever the model does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// From arrival to the last token.
    pub(crate) time: Option<Duration>,
    /// Generated per choice.
    pub(crate) tokens: Option<usize>,
    /// What is done with prompts that are too long, where a request does not say.
    pub(crate) overflow: Overflow,
}

/// A request in the queue or running. Dropping it cancels it.
pub(crate) struct Run {
    events: UnboundedReceiver<Event>,
    pub(crate) prompt_tokens: usize,
    /// Left out of the prompt.
    pub(crate) dropped_tokens: usize,
    pub(crate) choices: usize,
    aside: Arc<Aside>,
    meter: Option<Meter>,
    journey: Arc<Journey>,
    received: Instant,
    /// From arrival to the first event.
    latency: Option<Duration>,
    left: usize,
    /// `None` for a canned answer.
    _slot: Option<Slot>,
    lease: Lease,
}

impl Run {
    /// The next event; an engine that ends without a last word is an error.
    pub(crate) async fn next(&mut self) -> Event {
        let event = self.events.recv().await.unwrap_or(Event::Failed(ApiError::Internal));
        if let (Event::Piece { .. }, Some(meter)) = (&event, &self.meter) {
            meter.spend(1);
        }
        match &event {
            Event::Piece { text, .. } => self.journey.text(text),
            Event::Finished { reason, .. } => self.journey.finished(*reason),
            Event::Failed(error) => self.journey.failed(error),
        }
        let latency = *self.latency.get_or_insert_with(|| self.received.elapsed());
        match &event {
            Event::Failed(ApiError::Internal | ApiError::Stalled) => self.lease.report(true, latency),
            Event::Finished { .. } => {
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.lease.report(false, latency);
                }
            }
            // The client's own fault, or its time limit: says nothing about the model.
            Event::Failed(_) | Event::Piece { .. } => {}
        }
        event
    }

    /// What comes after this is not wanted: the answer is whole.
    pub(crate) fn enough(mut self) {
        self.journey.finished(StopReason::Stop);
        self.lease.report(false, self.latency.unwrap_or_default());
        self.aside.is_enough.store(true, Ordering::Relaxed);
    }

    /// Prompt tokens that were not computed but kept from earlier requests. Known when the first event is.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.aside.cached_tokens.load(Ordering::Relaxed)
    }
}

impl Service {
    /// Starts the engine. `admission` outlives it: requests wait there for the model itself too.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        admission: Admission,
        limits: Limits,
        config: WorkerConfig,
        turns: Arc<Turns>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ServeError> {
        let worker = Worker::start(backend, config, turns, Arc::clone(&metrics))?;
        let (summaries, beside) = (Summaries::default(), tokio::sync::Mutex::default());
        Ok(Self { admission, worker, limits, summaries, beside, metrics })
    }

    /// The model.
    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        self.worker.backend()
    }

    /// An error where the engine hangs.
    pub(crate) fn check_alive(&self) -> Result<(), ApiError> {
        self.worker.check_alive()
    }

    /// Cancels everything.
    pub(crate) fn stop(&self) {
        self.worker.stop();
    }

    /// See [`Worker::settle`].
    pub(crate) fn settle(&self) {
        self.worker.settle();
    }

    /// Runs something short on a blocking thread.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Backend) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let backend = self.backend();
        tokio::task::spawn_blocking(move || work(&*backend)).await.map_err(|_| ApiError::Internal)
    }

    /// Runs the model beside the engine thread, one such work at a time. Takes a slot as generating does.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Backend) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.check_alive()?;
        let _slot = self.admit()?;
        let _turn = self.beside.lock().await;
        let turn = self.worker.turn();
        self.prepare(move |backend| {
            let _turn = turn();
            work(backend)
        })
        .await
    }

    /// What the model makes of a text; `None` where `patience` was over first. No request waits for it longer than a step
    /// takes.
    pub(crate) async fn probe(
        &self,
        text: ProbeText,
        mut patience: impl FnMut() -> bool + Send + 'static,
    ) -> Result<Option<Probe>, EngineError> {
        let backend = self.backend();
        let probe = move || catch_unwind(AssertUnwindSafe(|| backend.probe(&text, &mut patience)));
        match tokio::task::spawn_blocking(probe).await {
            Ok(Ok(outcome)) => outcome,
            // Whatever it was, the model cannot be relied on.
            _ => Err(EngineError::Option { option: "probe", what: "panicked".to_owned() }),
        }
    }

    /// The same for as long as nothing waits or runs on the whole server.
    pub(crate) async fn probe_when_idle(&self, text: ProbeText) -> Result<Option<Probe>, EngineError> {
        let metrics = Arc::clone(&self.metrics);
        self.probe(text, move || metrics.waiting.get() == 0 && metrics.running.get() == 0).await
    }

    /// Tokens of a prompt and its answer together.
    pub(crate) fn room(&self) -> usize {
        let backend = self.backend();
        backend.context().min(backend.kv_limit().map_or(usize::MAX, |kv| kv.tokens))
    }

    /// What is done with prompts that are too long, where a request does not say.
    pub(crate) fn overflow(&self) -> Overflow {
        self.limits.overflow
    }

    /// Of conversations of this model.
    pub(crate) fn summaries(&self) -> &Summaries {
        &self.summaries
    }

    /// A place in the queue.
    pub(crate) fn admit(&self) -> Result<Slot, ApiError> {
        self.admission.admit(self.worker.retry_after_s())
    }

    fn check_prompt(&self, prompt: &[u32], param: &'static str) -> Result<(), ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::from_engine(&EngineError::EmptyPrompt, param));
        }
        let vocab_size = self.backend().vocab_size();
        match prompt.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocab_size)) {
            Some(&id) => Err(ApiError::from_engine(&EngineError::TokenId { id, vocab_size }, param)),
            None => Ok(()),
        }
    }

    /// How many tokens may be generated: what was asked for, or what the context, the memory and the server's limit leave.
    fn fit(&self, prompt: usize, wanted: MaxTokens, param: &'static str) -> Result<usize, ApiError> {
        let backend = self.backend();
        let (context, kv) = (backend.context(), backend.kv_limit());
        let capacity = kv.map_or(usize::MAX, |kv| kv.tokens);
        let limit = self.limits.tokens.unwrap_or(usize::MAX);
        let most = context.min(capacity).saturating_sub(prompt).min(limit).max(1);
        let max_new = match wanted {
            MaxTokens::Asked(max_new) if max_new > limit => {
                let what = format!("{max_new} is more than the {limit} tokens that this server generates at most");
                return Err(ApiError::invalid("max_tokens", what));
            }
            MaxTokens::Asked(max_new) => max_new,
            MaxTokens::Default(max_new) => max_new.min(most),
            MaxTokens::Rest => most,
        };
        let tokens = prompt.saturating_add(max_new);
        if tokens > context {
            return Err(ApiError::ContextLength { param, prompt, max_new, context });
        }
        match kv {
            Some(kv) if tokens > kv.tokens => {
                Err(ApiError::KvBudget { param, tokens, budget_bytes: kv.budget_bytes, capacity: kv.tokens })
            }
            _ => Ok(max_new),
        }
    }
}

/// Where a request comes from.
pub(crate) struct Start {
    pub(crate) caller: Caller,
    /// The field that its prompt is in.
    pub(crate) param: &'static str,
}

impl Lease {
    /// Takes a slot, makes the prompt on a blocking thread, makes it fit as far as that is allowed, and queues it. `param` names
    /// the request field that the prompt comes from.
    pub(crate) async fn start(
        mut self,
        caller: Caller,
        parameters: &Parameters,
        param: &'static str,
        source: Source,
    ) -> Result<Run, ApiError> {
        if let Some(text) = self.canned() {
            return Ok(self.answer(&caller, &text, parameters.n));
        }
        self.check_alive()?;
        let slot = self.take_slot()?;
        let start = Start { caller, param };
        let grammar = match parameters.constraint.clone() {
            Some(wanted) => Some(self.prepare(move |backend| wanted.compile(backend)).await??),
            None => None,
        };
        let (prompt, dropped) = self.prompt_tokens(source, parameters, &start).await?;
        if let Some(meter) = &start.caller.meter {
            meter.spend(prompt.len());
        }
        start.caller.journey.of_prompt(&*self.backend(), &prompt);
        self.check_prompt(&prompt, param)?;
        let max_new = self.fit(prompt.len(), parameters.max_tokens, param)?;
        let prompt_tokens = prompt.len();
        let (events, aside) = self.push(prompt, max_new, parameters, grammar, &start);
        let choices = usize::try_from(parameters.n).unwrap_or(usize::MAX);
        Ok(Run {
            events,
            prompt_tokens,
            dropped_tokens: dropped.tokens,
            choices,
            aside,
            meter: start.caller.meter.clone(),
            journey: Arc::clone(&start.caller.journey),
            received: start.caller.received,
            latency: None,
            left: choices,
            _slot: Some(slot),
            lease: self,
        })
    }

    /// Queues a prompt.
    pub(crate) fn push(
        &self,
        prompt: Vec<u32>,
        max_new: usize,
        parameters: &Parameters,
        grammar: Option<Grammar>,
        start: &Start,
    ) -> (UnboundedReceiver<Event>, Arc<Aside>) {
        let seed = parameters.seed.unwrap_or_else(random);
        let choices: Vec<GenerateOptions> = (0..parameters.n)
            .map(|choice| {
                let mut options = parameters.options.clone();
                options.max_tokens = Some(max_new);
                options.adapter = self.adapter.clone();
                options.constraint = grammar.clone();
                options.sampling.seed = seed.wrapping_add(choice);
                options
            })
            .collect();
        let (events, receiver) = unbounded_channel();
        let aside = Arc::default();
        // The shorter of the two; a time too long to have an end has none.
        let time = parameters.timeout.into_iter().chain(self.limits.time).min();
        let Caller { client, received, journey, meter: _ } = &start.caller;
        self.worker.push(Job {
            prompt,
            prompt_param: start.param,
            choices,
            received: *received,
            client: *client,
            priority: parameters.priority,
            deadline: time.and_then(|time| received.checked_add(time)),
            aside: Arc::clone(&aside),
            journey: Arc::clone(journey),
            events,
        });
        (receiver, aside)
    }

    /// An answer of the same text for each choice, made without the model.
    fn answer(self, caller: &Caller, text: &str, choices: u64) -> Run {
        let (sender, events) = unbounded_channel();
        for _ in 0..choices {
            // The receiver is right here.
            let _ = sender.send(Event::Piece { text: text.to_owned(), logprob: None });
            let _ = sender.send(Event::Finished { reason: StopReason::Stop, generated_tokens: 0 });
        }
        let choices = usize::try_from(choices).unwrap_or(usize::MAX);
        Run {
            events,
            prompt_tokens: 0,
            dropped_tokens: 0,
            choices,
            aside: Arc::default(),
            meter: None,
            journey: Arc::clone(&caller.journey),
            received: Instant::now(),
            latency: None,
            left: choices,
            _slot: None,
            lease: self,
        }
    }
}

/// The limit on generated tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaxTokens {
    /// By the client: an error where it does not fit.
    Asked(usize),
    /// By the endpoint or the model: less where it does not fit.
    Default(usize),
    /// Whatever the context leaves.
    Rest,
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An unpredictable number: the hasher's keys come from the system's random source. Not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()))
}
