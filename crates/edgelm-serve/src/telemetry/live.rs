//! Requests under way and those that ended last, for people to look at. No contents.

use super::{
    Journey,
    journey::{Ended, Steps},
};
use crate::metrics::seconds;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

const RECENT: usize = 50;

/// See the module.
#[derive(Default)]
pub(crate) struct Live {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    running: Vec<Weak<Journey>>,
    recent: VecDeque<Summary>,
}

/// A request in a list.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    id: String,
    client: String,
    route: String,
    model: Option<String>,
    /// `arrived`, `waiting`, `prefill`, `decode`, or how it ended.
    state: &'static str,
    status: Option<u16>,
    prompt_tokens: Option<usize>,
    cached_tokens: Option<usize>,
    generated_tokens: usize,
    queue_s: Option<f64>,
    prefill_s: Option<f64>,
    decode_s: Option<f64>,
    elapsed_s: f64,
}

impl Live {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begun(&self, journey: &Arc<Journey>) {
        self.inner().running.push(Arc::downgrade(journey));
    }

    pub(super) fn ended(&self, journey: &Journey, ended: &Ended) {
        if !journey.is_work() {
            return;
        }
        let mut summary = Summary::new(journey, &ended.steps, ended.result);
        summary.status = ended.status;
        let mut inner = self.inner();
        inner.running.retain(|other| other.as_ptr() != std::ptr::from_ref(journey));
        inner.recent.push_front(summary);
        inner.recent.truncate(RECENT);
    }

    /// What runs, oldest first, and what has ended, newest first.
    pub(crate) fn look(&self) -> (Vec<Summary>, Vec<Summary>) {
        let (running, recent) = {
            let inner = self.inner();
            let running: Vec<Arc<Journey>> = inner.running.iter().filter_map(Weak::upgrade).collect();
            (running, inner.recent.iter().cloned().collect())
        };
        let running = running.iter().map(|journey| {
            let steps = journey.steps().clone();
            let state = match &steps {
                Steps { result: Some(result), .. } => result,
                Steps { first_token: Some(_), .. } => "decode",
                Steps { started: Some(_), .. } => "prefill",
                Steps { prompt_tokens: Some(_), .. } => "waiting",
                _ => "arrived",
            };
            Summary::new(journey, &steps, state)
        });
        (running.collect(), recent)
    }
}

impl Summary {
    fn new(journey: &Journey, steps: &Steps, state: &'static str) -> Self {
        let now = Instant::now();
        // Of a phase that is not over, so far.
        let phase = |from: Option<Instant>, to: Option<Instant>| {
            Some(seconds(to.or(steps.done).unwrap_or(now).saturating_duration_since(from?)))
        };
        Self {
            id: journey.id.clone(),
            client: journey.client(steps),
            route: journey.route.clone(),
            model: steps.model.clone(),
            state,
            status: None,
            prompt_tokens: steps.prompt_tokens,
            cached_tokens: steps.cached_tokens,
            generated_tokens: steps.generated_tokens,
            queue_s: steps.prompt_tokens.and_then(|_| phase(Some(journey.received), steps.started)),
            prefill_s: phase(steps.started, steps.first_token),
            decode_s: phase(steps.first_token, steps.done),
            elapsed_s: seconds(now.saturating_duration_since(journey.received)),
        }
    }
}
