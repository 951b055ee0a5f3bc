//! From a checked request to a running one: slot, prompt, context check, queue.

use crate::{
    ServeError,
    admission::{Admission, Slot},
    api::Parameters,
    backend::Backend,
    error::ApiError,
    metrics::Metrics,
    worker::{Event, Job, Worker},
};
use edgelm_engine::{EngineError, GenerateOptions};
use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A loaded model behind its queue.
pub(crate) struct Service {
    pub(crate) backend: Arc<dyn Backend>,
    /// Unix time of loading, `created` in `/v1/models`.
    pub(crate) created: u64,
    admission: Admission,
    worker: Worker,
    beside: tokio::sync::Mutex<()>,
}

/// A request in the queue or running. Dropping it cancels it.
pub(crate) struct Run {
    events: UnboundedReceiver<Event>,
    pub(crate) prompt_tokens: usize,
    pub(crate) choices: usize,
    _slot: Slot,
}

impl Run {
    /// The next event; an engine that ends without a last word is an error.
    pub(crate) async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Failed(ApiError::Internal))
    }
}

impl Service {
    pub(crate) fn new(backend: Arc<dyn Backend>, queue: usize, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let worker = Worker::start(Arc::clone(&backend), metrics)?;
        Ok(Self {
            backend,
            created: unix_now(),
            admission: Admission::new(queue),
            worker,
            beside: tokio::sync::Mutex::default(),
        })
    }

    /// Cancels everything.
    pub(crate) fn stop(&self) {
        self.worker.stop();
    }

    /// `model` must be ours.
    pub(crate) fn check_model(&self, model: &str) -> Result<(), ApiError> {
        let available = self.backend.name();
        if model == available {
            return Ok(());
        }
        Err(ApiError::ModelNotFound { model: model.to_owned(), available: available.to_owned() })
    }

    /// Takes a slot, makes the prompt on a blocking thread, checks that it fits and queues it. `prompt_param` names the
    /// request field that the prompt comes from.
    pub(crate) async fn start(
        &self,
        parameters: &Parameters,
        prompt_param: &'static str,
        prompt: impl FnOnce(&dyn Backend) -> Result<Vec<u32>, EngineError> + Send + 'static,
        received: Instant,
    ) -> Result<Run, ApiError> {
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
                options.constraint = grammar.clone();
                options.sampling.seed = seed.wrapping_add(choice);
                options
            })
            .collect();
        let (events, receiver) = unbounded_channel();
        let run = Run { events: receiver, prompt_tokens: prompt.len(), choices: choices.len(), _slot: slot };
        self.worker.push(Job { prompt, prompt_param, choices, received, events });
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

    /// How many tokens may be generated: what was asked for, or what the context leaves.
    fn fit(&self, prompt: usize, wanted: MaxTokens, param: &'static str) -> Result<usize, ApiError> {
        let context = self.backend.context();
        let room = context.saturating_sub(prompt);
        let max_new = match wanted {
            MaxTokens::Asked(max_new) => max_new,
            MaxTokens::Default(max_new) => max_new.min(room).max(1),
            MaxTokens::Rest => room.max(1),
        };
        if max_new > room {
            return Err(ApiError::ContextLength { param, prompt, max_new, context });
        }
        Ok(max_new)
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
