//! One configured model: what it is, whether it is loaded, and who uses it.

use super::{KeepAlive, ModelSpec, artifact::About};
use crate::{
    admission::{Admission, Slot},
    backend::Backend,
    breaker::{Breaker, Circuit, Outcome, Pass},
    error::ApiError,
    health::Health,
    service::Service,
};
use edgelm_engine::LoadedAdapter;
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// A model and its state.
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(super) spec: ModelSpec,
    pub(super) admission: Admission,
    pub(super) breaker: Option<Arc<Breaker>>,
    state: Mutex<State>,
    /// Counts changes of the state, for those who wait for one.
    changes: watch::Sender<u64>,
    /// Whether it says what it said.
    pub(crate) health: Health,
    /// Somebody stopped using it: time to see whether it can go.
    pub(super) released: Arc<Notify>,
}

/// What changes.
pub(super) struct State {
    pub(super) phase: Phase,
    /// Loads that have ended, well or not.
    pub(super) attempts: u64,
    /// Of the last load, where it failed.
    pub(super) error: Option<ApiError>,
    /// Place of the artifact that is loaded, or was last.
    pub(super) artifact: usize,
    pub(super) total_bytes: u64,
    pub(super) load_time: Duration,
    pub(super) last_used: Instant,
    pub(super) keep_alive: KeepAlive,
    pub(super) about: About,
}

/// Where a model is between disk and memory.
pub(super) enum Phase {
    Absent,
    Loading,
    Loaded(Arc<Service>),
    /// Requests finish; new ones wait until it is gone and comes back.
    Leaving(Arc<Service>),
    /// Nobody uses it any more; its memory comes free.
    Freeing,
}

impl State {
    /// No new requests from now on; false where it is not loaded.
    pub(super) fn leave(&mut self) -> bool {
        match std::mem::replace(&mut self.phase, Phase::Freeing) {
            Phase::Loaded(service) => {
                self.phase = Phase::Leaving(service);
                true
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// Takes a leaving model that nobody uses any more.
    pub(super) fn take_unused(&mut self) -> Option<Arc<Service>> {
        match std::mem::replace(&mut self.phase, Phase::Freeing) {
            Phase::Leaving(service) if Arc::strong_count(&service) == 1 => Some(service),
            other => {
                self.phase = other;
                None
            }
        }
    }
}

impl Phase {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Absent => "unloaded",
            Self::Loading => "loading",
            Self::Loaded(_) => "loaded",
            Self::Leaving(_) | Self::Freeing => "unloading",
        }
    }

    /// What is in memory.
    pub(super) fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Loaded(service) | Self::Leaving(service) => Some(service),
            Self::Absent | Self::Loading | Self::Freeing => None,
        }
    }
}

impl Entry {
    pub(super) fn new(
        spec: ModelSpec,
        admission: Admission,
        breaker: Option<Arc<Breaker>>,
        keep_alive: KeepAlive,
        released: Arc<Notify>,
        health: Health,
    ) -> Self {
        let state = State {
            phase: Phase::Absent,
            attempts: 0,
            error: None,
            artifact: 0,
            total_bytes: 0,
            load_time: Duration::ZERO,
            last_used: Instant::now(),
            keep_alive,
            about: spec.about.clone(),
        };
        let (changes, _) = watch::channel(0);
        let id = spec.id.clone();
        Self { id, spec, admission, breaker, state: Mutex::new(state), changes, health, released }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and says so.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state());
        self.changes.send_modify(|count| *count += 1);
        outcome
    }

    /// To wait for a change that comes after this call.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ids of the model and its adapters.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        [self.id.as_str()].into_iter().chain(self.spec.adapters.iter().map(String::as_str))
    }

    /// SHA-256 of the files of the artifact that is loaded, or was last; read off the runtime's threads the first time.
    pub(crate) async fn digest(&self) -> Option<String> {
        let artifact = self.state().artifact;
        self.digest_of(artifact).await
    }

    /// See [`Self::digest`]; of this artifact.
    pub(crate) async fn digest_of(&self, artifact: usize) -> Option<String> {
        let artifact = Arc::clone(self.spec.artifacts.get(artifact)?);
        tokio::task::spawn_blocking(move || artifact.digest().ok()).await.ok().flatten()
    }

    /// The same of the bytes that are there now, whatever was read before.
    pub(crate) async fn digest_anew(&self) -> Option<String> {
        let artifact = Arc::clone(self.spec.artifacts.get(self.state().artifact)?);
        tokio::task::spawn_blocking(move || artifact.digest_anew().ok()).await.ok().flatten()
    }

    /// What is loaded, and the place of its artifact.
    pub(crate) fn loaded(&self) -> Option<(usize, Arc<Service>)> {
        let state = self.state();
        match &state.phase {
            Phase::Loaded(service) => Some((state.artifact, Arc::clone(service))),
            _ => None,
        }
    }

    /// What [`Self::loaded`] gave is not used any more: time to see whether the model can go.
    pub(crate) fn let_go(&self) {
        self.released.notify_one();
    }

    /// What is known of it now.
    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        let service = state.phase.service();
        let is_used = service.is_some_and(|service| Arc::strong_count(service) > 1);
        Status {
            phase: state.phase.name(),
            artifact: state.artifact,
            artifact_name: self.spec.artifacts.get(state.artifact).map_or_else(String::new, |it| it.name().to_owned()),
            total_bytes: service.map_or(0, |_| state.total_bytes),
            is_loaded: service.is_some(),
            expires: match state.keep_alive {
                KeepAlive::Forever => None,
                KeepAlive::For(time) if is_used => Some(time),
                KeepAlive::For(time) => Some(time.saturating_sub(state.last_used.elapsed())),
            },
            alive: service.map_or(Ok(()), |service| service.check_alive()),
            circuit: self.breaker.as_ref().map_or(Circuit::Closed, |breaker| breaker.circuit()),
            load_error: state.error.as_ref().map(ToString::to_string),
            about: state.about.clone(),
        }
    }
}

/// See [`Entry::status`].
pub(crate) struct Status {
    pub(crate) phase: &'static str,
    pub(crate) artifact: usize,
    pub(crate) artifact_name: String,
    /// Of a loaded one.
    pub(crate) total_bytes: u64,
    pub(crate) is_loaded: bool,
    /// From now, where it is not used meanwhile; `None` = never.
    pub(crate) expires: Option<Duration>,
    /// An error where its engine hangs.
    pub(crate) alive: Result<(), ApiError>,
    pub(crate) circuit: Circuit,
    pub(crate) load_error: Option<String>,
    pub(crate) about: About,
}

/// The use of a loaded model: it stays loaded until this is dropped.
pub(crate) struct Lease {
    // In this order: the model is let go before that is said.
    service: Arc<Service>,
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    /// The adapter's id.
    pub(crate) adapter_id: Option<String>,
    /// The id that answers, where it is not the one that was asked for.
    pub(super) stands_in: Option<String>,
    /// Loading it took so long, if this request was the cause or had to wait.
    pub(crate) load_time: Duration,
    /// A place in the queue, which a request that had to wait for the model has already.
    slot: Option<Slot>,
    /// Answers in the model's place.
    pub(super) canned: Option<Arc<str>>,
    pass: Option<Pass>,
    release: Release,
}

struct Release(Arc<Entry>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.state().last_used = Instant::now();
        self.0.released.notify_one();
    }
}

impl Lease {
    pub(super) fn new(
        service: Arc<Service>,
        entry: Arc<Entry>,
        adapter: Option<&str>,
        waited: Option<(Slot, Duration)>,
        pass: Option<Pass>,
    ) -> Result<Self, ApiError> {
        let backend = service.backend();
        let found = match adapter {
            None => None,
            Some(id) => match backend.adapters().iter().find(|(other, _)| other == id) {
                Some((_, adapter)) => Some(Arc::clone(adapter)),
                None => return Err(ApiError::Internal),
            },
        };
        let (slot, load_time) = waited.map_or((None, Duration::ZERO), |(slot, time)| (Some(slot), time));
        let adapter_id = adapter.map(str::to_owned);
        Ok(Self {
            service,
            adapter: found,
            adapter_id,
            stands_in: None,
            load_time,
            slot,
            canned: None,
            pass,
            release: Release(entry),
        })
    }

    /// How the request went, for the model's circuit breaker.
    pub(crate) fn report(&mut self, failed: bool, latency: Duration) {
        if let Some(pass) = &mut self.pass {
            pass.report(Outcome { failed, latency });
        }
    }

    /// The text that is answered in the model's place.
    pub(crate) fn canned(&self) -> Option<Arc<str>> {
        self.canned.clone()
    }

    /// A place in the queue: taken now, if not before.
    pub(crate) fn take_slot(&mut self) -> Result<Slot, ApiError> {
        match self.slot.take() {
            Some(slot) => Ok(slot),
            None => self.service.admit(),
        }
    }

    /// What the answer says for `model`: what was asked for, or who stands in for it.
    pub(crate) fn answers_for(&self, asked: String) -> String {
        self.stands_in.clone().unwrap_or(asked)
    }

    /// The model's id.
    pub(crate) fn id(&self) -> &str {
        &self.release.0.id
    }

    /// See [`Entry::digest`].
    pub(crate) async fn digest(&self) -> Option<String> {
        self.release.0.digest().await
    }

    /// The model, for reading requests and making prompts.
    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        self.service.backend()
    }

    /// From now on, how long it stays loaded when nobody uses it.
    pub(crate) fn keep_alive(&self, keep_alive: KeepAlive) {
        self.release.0.state().keep_alive = keep_alive;
    }
}

impl Deref for Lease {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}
