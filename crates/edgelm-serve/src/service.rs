//! From a checked request to a running one: slot, prompt, context check, queue.

use crate::{
    ServeError,
    access::Meter,
    admission::{Admission, Slot},
    api::Parameters,
    backend::Backend,
    caller::Caller,
    error::ApiError,
    metrics::Metrics,
    worker::{Event, Job, Worker, WorkerConfig},
};
use edgelm_engine::{EngineError, GenerateOptions, LoadedAdapter};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A loaded model behind its queue.
pub(crate) struct Service {
    pub(crate) backend: Arc<dyn Backend>,
    /// Unix time of loading, `created` in `/v1/models`.
    pub(crate) created: u64,
    admission: Admission,
    worker: Worker,
    limits: Limits,
    beside: tokio::sync::Mutex<()>,
}

/// What the server allows a request, whatever the model does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// From arrival to the last token.
    pub(crate) time: Option<Duration>,
    /// Generated per choice.
    pub(crate) tokens: Option<usize>,
}

/// What a request chose as its model.
#[derive(Debug)]
#[must_use = "an adapter that is not used is an answer of the wrong model"]
pub(crate) struct Target {
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
}

/// A request in the queue or running. Dropping it cancels it.
pub(crate) struct Run {
    events: UnboundedReceiver<Event>,
    pub(crate) prompt_tokens: usize,
    pub(crate) choices: usize,
    cached_tokens: Arc<AtomicUsize>,
    meter: Option<Meter>,
    _slot: Slot,
}

impl Run {
    /// The next event; an engine that ends without a last word is an error.
    pub(crate) async fn next(&mut self) -> Event {
        let event = self.events.recv().await.unwrap_or(Event::Failed(ApiError::Internal));
        if let (Event::Piece { .. }, Some(meter)) = (&event, &self.meter) {
            meter.spend(1);
        }
        event
    }

    /// Prompt tokens that were not computed but kept from earlier requests. Known when the first event is.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Ordering::Relaxed)
    }
}

impl Service {
    /// With so many requests that may wait.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        queue: usize,
        limits: Limits,
        config: WorkerConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ServeError> {
        let worker = Worker::start(Arc::clone(&backend), config, metrics)?;
        Ok(Self {
            backend,
            created: unix_now(),
            admission: Admission::new(config.parallel, queue),
            worker,
            limits,
            beside: tokio::sync::Mutex::default(),
        })
    }

    /// An error where the engine hangs.
    pub(crate) fn check_alive(&self) -> Result<(), ApiError> {
        self.worker.check_alive()
    }

    /// Cancels everything.
    pub(crate) fn stop(&self) {
        self.worker.stop();
    }

    /// `model` must be ours, or one of its adapters.
    pub(crate) fn target(&self, model: &str) -> Result<Target, ApiError> {
        if model == self.backend.name() {
            return Ok(Target { adapter: None });
        }
        let adapters = self.backend.adapters();
        if let Some((_, adapter)) = adapters.iter().find(|(id, _)| id == model) {
            return Ok(Target { adapter: Some(Arc::clone(adapter)) });
        }
        let ids: Vec<_> = [self.backend.name()].into_iter().chain(adapters.iter().map(|(id, _)| id.as_str())).collect();
        Err(ApiError::ModelNotFound { model: model.to_owned(), available: ids.join("`, `") })
    }

    /// Takes a slot, makes the prompt on a blocking thread, checks that it fits and queues it. `prompt_param` names the
    /// request field that the prompt comes from.
    pub(crate) async fn start(
        &self,
        caller: Caller,
        target: Target,
        parameters: &Parameters,
        prompt_param: &'static str,
        prompt: impl FnOnce(&dyn Backend) -> Result<Vec<u32>, EngineError> + Send + 'static,
    ) -> Result<Run, ApiError> {
        self.check_alive()?;
        let slot = self.admission.admit(self.worker.retry_after_s())?;
        let backend = Arc::clone(&self.backend);
        let constraint = parameters.constraint.clone();
        let prepare = move || {
            let grammar = constraint.map(|wanted| wanted.compile(&*backend)).transpose()?;
            let prompt = prompt(&*backend).map_err(|error| ApiError::from_engine(&error, prompt_param))?;
            Ok((prompt, grammar))
        };
        let (prompt, grammar) = tokio::task::spawn_blocking(prepare).await.map_err(|_| ApiError::Internal)??;
        self.check_prompt(&prompt, prompt_param)?;
        let max_new = self.fit(prompt.len(), parameters.max_tokens, prompt_param)?;
        let seed = parameters.seed.unwrap_or_else(random);
        let choices: Vec<GenerateOptions> = (0..parameters.n)
            .map(|choice| {
                let mut options = parameters.options.clone();
                options.max_tokens = Some(max_new);
                options.adapter = target.adapter.clone();
                options.constraint = grammar.clone();
                options.sampling.seed = seed.wrapping_add(choice);
                options
            })
            .collect();
        if let Some(meter) = &caller.meter {
            meter.spend(prompt.len());
        }
        let (events, receiver) = unbounded_channel();
        let cached_tokens = Arc::default();
        let run = Run {
            events: receiver,
            prompt_tokens: prompt.len(),
            choices: choices.len(),
            cached_tokens: Arc::clone(&cached_tokens),
            meter: caller.meter.clone(),
            _slot: slot,
        };
        // The shorter of the two; a time too long to have an end has none.
        let time = parameters.timeout.into_iter().chain(self.limits.time).min();
        let Caller { client, received, meter: _ } = caller;
        self.worker.push(Job {
            prompt,
            prompt_param,
            choices,
            received,
            client,
            priority: parameters.priority,
            deadline: time.and_then(|time| received.checked_add(time)),
            cached_tokens,
            events,
        });
        Ok(run)
    }

    /// Runs something short on a blocking thread.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Backend) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let backend = Arc::clone(&self.backend);
        tokio::task::spawn_blocking(move || work(&*backend)).await.map_err(|_| ApiError::Internal)
    }

    /// Runs the model beside the engine thread, one such work at a time. Takes a slot as generating does.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Backend) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.check_alive()?;
        let _slot = self.admission.admit(self.worker.retry_after_s())?;
        let _turn = self.beside.lock().await;
        self.prepare(work).await
    }

    fn check_prompt(&self, prompt: &[u32], param: &'static str) -> Result<(), ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::from_engine(&EngineError::EmptyPrompt, param));
        }
        let vocab_size = self.backend.vocab_size();
        match prompt.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocab_size)) {
            Some(&id) => Err(ApiError::from_engine(&EngineError::TokenId { id, vocab_size }, param)),
            None => Ok(()),
        }
    }

    /// How many tokens may be generated: what was asked for, or what the context, the memory and the server's limit leave.
    fn fit(&self, prompt: usize, wanted: MaxTokens, param: &'static str) -> Result<usize, ApiError> {
        let context = self.backend.context();
        let kv = self.backend.kv_limit();
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
