//! Several models in one process: loaded when a request asks for them, unloaded when memory is needed, or nobody has used
//! them for as long as was said.
//!
//! Loads go one after the other, in the order in which they were asked for. One that lacks memory unloads the model that was
//! not used for longest: an idle one at once; a busy one finishes what it has, while new requests for it wait in its queue and
//! get their turn after this one. So no model is taken from under a request, and none can keep another out for ever.

mod artifact;
mod entry;
mod keep_alive;
mod ready;

pub use artifact::{About, Artifact, BoxError, MemoryPlan, ModelSpec, PlanError, Room};
pub(crate) use entry::{Entry, Lease, Status};
pub use keep_alive::KeepAlive;

use crate::{
    ServerConfig,
    admission::Admission,
    breaker::{Breaker, Circuit},
    error::ApiError,
    health::{self, Health, Mismatch},
    metrics::Metrics,
    notes,
    service::{Limits, Service},
    telemetry::Telemetry,
    turns::Turns,
    worker::WorkerConfig,
};
use entry::{Phase, State};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, Notify, oneshot},
    time::{sleep, timeout_at},
};

/// Between looks at whether a model's last user has left.
const POLL: Duration = Duration::from_millis(5);
/// For the engine's threads to end and free its memory. One that hangs never does; the next load then sees the memory as
/// taken, because the system says so.
const FREE_TIME: Duration = Duration::from_secs(10);

/// All models of a server.
pub(crate) struct Models {
    entries: Vec<Arc<Entry>>,
    budget_bytes: Option<u64>,
    /// Stands in for a model that cannot be had.
    fallback: Option<usize>,
    fallback_text: Option<Arc<str>>,
    limits: Limits,
    worker: WorkerConfig,
    turns: Arc<Turns>,
    metrics: Arc<Metrics>,
    telemetry: Arc<Telemetry>,
    /// Who holds it may load and unload. First come, first served.
    loading: Mutex<()>,
    released: Arc<Notify>,
    is_probing: bool,
    is_ready: AtomicBool,
    is_stopping: AtomicBool,
}

impl Models {
    pub(crate) fn new(
        specs: Vec<ModelSpec>,
        config: &ServerConfig,
        metrics: Arc<Metrics>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let released = Arc::new(Notify::new());
        let entry = |spec: ModelSpec| {
            let admission = Admission::new(config.parallel, config.queue);
            let breaker = config.breaker.map(|breaker| {
                let (id, metrics) = (spec.id.clone(), Arc::clone(&metrics));
                metrics.circuit(&id, Circuit::Closed);
                Arc::new(Breaker::new(breaker, move |circuit| {
                    tracing::warn!(model = id, circuit = circuit.name(), "circuit breaker");
                    metrics.circuit(&id, circuit);
                }))
            });
            let health = Health::new(config.health_baseline.clone());
            Arc::new(Entry::new(spec, admission, breaker, config.keep_alive, Arc::clone(&released), health))
        };
        let entries: Vec<_> = specs.into_iter().map(entry).collect();
        let fallback = config.fallback.as_ref().and_then(|id| entries.iter().position(|entry| entry.id == *id));
        Self {
            entries,
            budget_bytes: config.memory_bytes,
            fallback,
            fallback_text: config.fallback_text.as_deref().map(Arc::from),
            limits: Limits { time: config.request_time, tokens: config.request_tokens, overflow: config.overflow },
            worker: WorkerConfig {
                parallel: config.parallel.max(1),
                pass_limit: config.pass_limit,
                restarts: config.restarts,
                save_delay: config.save_delay,
            },
            turns: Arc::new(Turns::new(config.cpu_share)),
            metrics,
            telemetry,
            loading: Mutex::default(),
            released,
            is_probing: config.health_interval.is_some() || config.health_baseline.is_some(),
            is_ready: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// All of them, the main one first. An error until the server is ready.
    pub(crate) fn entries(&self) -> Result<&[Arc<Entry>], ApiError> {
        if self.is_ready.load(Ordering::Relaxed) { Ok(&self.entries) } else { Err(ApiError::Loading) }
    }

    /// All of them, also before the server is ready.
    pub(crate) fn all(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// Loads a model again, from the same artifacts, when those who use it are done; new requests wait. An error also where it then
    /// does not say what it said before.
    pub(crate) async fn reload(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), BoxError> {
        let _turn = self.loading.lock().await;
        self.unload(entry).await;
        self.load(entry).await
    }

    /// The model that requests without one mean.
    fn main(&self) -> Result<&Arc<Entry>, ApiError> {
        self.entries()?.first().ok_or(ApiError::Internal)
    }

    /// The model of an id, and the adapter that the id means.
    pub(crate) fn find<'a>(&self, id: &'a str) -> Result<(&Arc<Entry>, Option<&'a str>), ApiError> {
        for entry in self.entries()? {
            if entry.id == id {
                return Ok((entry, None));
            }
            if entry.spec.adapters.iter().any(|adapter| adapter == id) {
                return Ok((entry, Some(id)));
            }
        }
        let ids: Vec<_> = self.entries.iter().flat_map(|entry| entry.ids()).collect();
        Err(ApiError::ModelNotFound { model: id.to_owned(), available: ids.join("`, `") })
    }

    /// Loads the main model, or all, and opens for requests. The error is of the first that cannot be loaded.
    pub(crate) async fn start(self: &Arc<Self>, all: bool) -> Result<(), BoxError> {
        for entry in self.entries.iter().take(if all { usize::MAX } else { 1 }) {
            let _turn = self.loading.lock().await;
            self.load(entry).await?;
        }
        self.is_ready.store(true, Ordering::Relaxed);
        let models = Arc::clone(self);
        tokio::spawn(async move { models.unload_expired().await });
        Ok(())
    }

    /// Ends everything.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for entry in &self.entries {
            let service = entry.state().phase.service().map(Arc::clone);
            if let Some(service) = service {
                service.stop();
            }
        }
    }

    /// Waits, after [`Models::stop`], for what models save at their end.
    pub(crate) async fn settle(&self) {
        for entry in &self.entries {
            let service = entry.state().phase.service().map(Arc::clone);
            if let Some(service) = service {
                // An error means that the runtime ends too.
                let _ = tokio::task::spawn_blocking(move || service.settle()).await;
            }
        }
    }

    /// The use of a model (`None` = the main one), loaded first if need be; the request waits until then in the model's queue,
    /// until `deadline`. Where it cannot be had, the fallback answers, and the client is told.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        id: Option<&str>,
        deadline: Option<Instant>,
    ) -> Result<Lease, ApiError> {
        let (entry, adapter) = match id {
            Some(id) => self.find(id)?,
            None => (self.main()?, None),
        };
        let deadline =
            deadline.into_iter().chain(self.limits.time.and_then(|time| Instant::now().checked_add(time))).min();
        let error = match self.lease_entry(entry, adapter, deadline).await {
            Err(error @ (ApiError::ModelUnavailable { .. } | ApiError::Stalled)) => error,
            other => return other,
        };
        match self.fallback.and_then(|place| self.entries.get(place)).filter(|other| !Arc::ptr_eq(other, entry)) {
            None => self.canned(entry, error),
            Some(other) => {
                tracing::warn!(model = entry.id, fallback = other.id, %error, "another model answers");
                self.metrics.fell_back(&entry.id, &other.id);
                let mut lease = match self.lease_entry(other, None, deadline).await {
                    Ok(lease) => lease,
                    Err(error) => return self.canned(entry, error),
                };
                lease.stands_in = Some(other.id.clone());
                notes::say(notes::FALLBACK, &other.id);
                Ok(lease)
            }
        }
    }

    /// The text that stands in for a model, if there is one. Requests are read as for the model itself, or as for any that is
    /// loaded where it is not.
    fn canned(&self, entry: &Arc<Entry>, error: ApiError) -> Result<Lease, ApiError> {
        let Some(text) = &self.fallback_text else { return Err(error) };
        let loaded = |entry: &Arc<Entry>| match &entry.state().phase {
            Phase::Loaded(service) => Some((Arc::clone(service), Arc::clone(entry))),
            _ => None,
        };
        let Some((service, reader)) = loaded(entry).or_else(|| self.entries.iter().find_map(loaded)) else {
            return Err(error);
        };
        tracing::warn!(model = entry.id, %error, "a text answers");
        self.metrics.fell_back(&entry.id, "text");
        notes::say(notes::FALLBACK, "text");
        let mut lease = Lease::new(service, reader, None, None, None)?;
        lease.canned = Some(Arc::clone(text));
        Ok(lease)
    }

    async fn lease_entry(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        adapter: Option<&str>,
        deadline: Option<Instant>,
    ) -> Result<Lease, ApiError> {
        let unavailable = |retry_after_s| ApiError::ModelUnavailable { model: entry.id.clone(), retry_after_s };
        let pass = entry.breaker.as_ref().map(|breaker| breaker.pass().map_err(unavailable)).transpose()?;
        let since = Instant::now();
        let attempts = entry.state().attempts;
        let mut slot = None;
        loop {
            let mut changes = entry.subscribe();
            {
                let mut state = entry.state();
                if self.is_stopping.load(Ordering::Relaxed) {
                    return Err(ApiError::ShuttingDown);
                }
                match &state.phase {
                    Phase::Loaded(_) if entry.health.state().fault().is_some() => {
                        let model = entry.id.clone();
                        return Err(ApiError::ModelUnavailable { model, retry_after_s: RETRY_AFTER_S });
                    }
                    Phase::Loaded(service) => {
                        let service = Arc::clone(service);
                        state.last_used = Instant::now();
                        drop(state);
                        let waited = slot.map(|slot| (slot, since.elapsed()));
                        service.check_alive()?;
                        return Lease::new(service, Arc::clone(entry), adapter, waited, pass);
                    }
                    Phase::Absent => {
                        if state.attempts > attempts
                            && let Some(error) = &state.error
                        {
                            return Err(error.clone());
                        }
                        state.phase = Phase::Loading;
                        let (models, entry) = (Arc::clone(self), Arc::clone(entry));
                        tokio::spawn(async move {
                            let _turn = models.loading.lock().await;
                            // The error is kept for those who wait.
                            let _ = models.load(&entry).await;
                        });
                    }
                    Phase::Loading | Phase::Leaving(_) | Phase::Freeing => {}
                }
            }
            if slot.is_none() {
                slot = Some(entry.admission.admit(1)?);
            }
            match deadline {
                Some(deadline) => {
                    if timeout_at(deadline.into(), changes.changed()).await.is_err() {
                        self.metrics.late.inc();
                        return Err(ApiError::DeadlineExceeded);
                    }
                }
                None => _ = changes.changed().await,
            }
        }
    }

    /// Notes in the audit log what was loaded. Beside: the digest takes as long as reading the files does.
    fn record_load(&self, entry: &Arc<Entry>, artifact: &str) {
        if self.telemetry.audit().is_none() {
            return;
        }
        let (telemetry, entry, artifact) = (Arc::clone(&self.telemetry), Arc::clone(entry), artifact.to_owned());
        tokio::spawn(async move {
            let digest = entry.digest().await;
            telemetry.event("model_loaded", &entry.id, digest, Some(artifact));
        });
    }

    /// Loads a model from the first of its artifacts that works. Only for who holds `loading`.
    async fn load(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(), BoxError> {
        entry.change(|state| state.phase = Phase::Loading);
        let begin = Instant::now();
        let mut failures: Vec<String> = Vec::new();
        let mut last: BoxError = "no artifact".into();
        for (index, artifact) in entry.spec.artifacts.iter().enumerate() {
            let error = match self.load_checked(entry, index, artifact).await {
                Ok((service, total_bytes)) => {
                    let took = begin.elapsed();
                    if index > 0 {
                        tracing::warn!(
                            model = entry.id,
                            artifact = artifact.name(),
                            ?failures,
                            "loaded a lesser artifact"
                        );
                        self.metrics.fell_back(&entry.id, artifact.name());
                    }
                    tracing::info!(model = entry.id, artifact = artifact.name(), total_bytes, ?took, "loaded");
                    self.metrics.loaded(&entry.id, true);
                    entry.change(|state| {
                        let backend = service.backend();
                        state.about.description = backend.description().clone();
                        state.about.context = backend.context();
                        state.phase = Phase::Loaded(service);
                        state.attempts += 1;
                        state.error = None;
                        state.artifact = index;
                        state.total_bytes = total_bytes;
                        state.load_time = took;
                        state.last_used = Instant::now();
                    });
                    self.record_load(entry, artifact.name());
                    return Ok(());
                }
                Err(error) => error,
            };
            tracing::error!(
                model = entry.id,
                artifact = artifact.name(),
                error = &*error as &dyn std::error::Error,
                "cannot be loaded"
            );
            self.metrics.load_failed(&entry.id);
            failures.push(format!("{}: {error}", artifact.name()));
            last = error;
        }
        let unavailable = ApiError::ModelUnavailable { model: entry.id.clone(), retry_after_s: RETRY_AFTER_S };
        entry.change(|state| {
            state.phase = Phase::Absent;
            state.attempts += 1;
            state.error = Some(unavailable);
        });
        Err(last)
    }

    /// Loads an artifact. One that does not say what the baseline's file has is read from the disk once more: what was wrong may
    /// have been on the way.
    async fn load_checked(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        index: usize,
        artifact: &Arc<dyn Artifact>,
    ) -> Result<(Arc<Service>, u64), BoxError> {
        let error = match self.load_artifact(entry, index, artifact).await {
            Err(error) if error.downcast_ref::<Mismatch>().is_some_and(|it| it.is_first) => error,
            other => return other,
        };
        let theirs = Arc::clone(artifact);
        let digest = on_thread("edgelm-digest", move || theirs.digest_anew().ok()).await?;
        let what = error.to_string();
        tracing::error!(model = entry.id, what, digest, "not what the health baseline has; it is loaded once more");
        self.telemetry.event("health_mismatch", &entry.id, digest.clone(), Some(what));
        match self.load_artifact(entry, index, artifact).await {
            Ok(loaded) => {
                tracing::warn!(model = entry.id, "loaded anew, the model says what the health baseline has");
                self.telemetry.event("health_restored", &entry.id, digest, None);
                Ok(loaded)
            }
            Err(error) => {
                self.telemetry.event("health_reload_failed", &entry.id, digest, Some(error.to_string()));
                Err(error)
            }
        }
    }

    async fn load_artifact(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        index: usize,
        artifact: &Arc<dyn Artifact>,
    ) -> Result<(Arc<Service>, u64), BoxError> {
        let plan = loop {
            let room = self.room();
            let theirs = Arc::clone(artifact);
            let plan = on_thread("edgelm-plan", move || theirs.plan(&room)).await?;
            if let Err(PlanError::Artifact(error)) = plan {
                return Err(error);
            }
            if matches!(&plan, Ok(plan) if !plan.is_cramped) {
                break plan?;
            }
            match self.victim(entry) {
                Some(victim) => self.unload(&victim).await,
                None => break plan?,
            }
        };
        for note in &plan.notes {
            tracing::warn!(model = entry.id, "{note}");
        }
        let (theirs, chosen) = (Arc::clone(artifact), plan.clone());
        let backend = on_thread("edgelm-load", move || theirs.load(&chosen)).await??;
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("the server is shutting down".into());
        }
        let worker = WorkerConfig { parallel: plan.parallel.max(1), ..self.worker };
        let (turns, metrics) = (Arc::clone(&self.turns), Arc::clone(&self.metrics));
        let service = Service::new(backend, entry.admission.clone(), self.limits, worker, turns, metrics)?;
        let service = Arc::new(service);
        if self.is_probing {
            health::warm_up(entry, index, &service, &self.metrics.health).await?;
        }
        Ok((service, plan.total_bytes))
    }

    fn room(&self) -> Room {
        let committed_bytes = self.entries.iter().map(|entry| entry.status().total_bytes).sum();
        Room { budget_bytes: self.budget_bytes.map(|budget| budget.saturating_sub(committed_bytes)), committed_bytes }
    }

    /// Who goes to make room: the idle model that was not used for longest, or else the busy one. A model that takes no memory
    /// stays.
    fn victim(&self, but: &Arc<Entry>) -> Option<Arc<Entry>> {
        let others = self.entries.iter().filter(|entry| !Arc::ptr_eq(entry, but));
        let loaded = others.filter_map(|entry| {
            let state = entry.state();
            match &state.phase {
                Phase::Loaded(service) if state.total_bytes > 0 => {
                    Some((Arc::strong_count(service) > 1, state.last_used, Arc::clone(entry)))
                }
                _ => None,
            }
        });
        loaded.min_by_key(|(is_used, last_used, _)| (*is_used, *last_used)).map(|(_, _, entry)| entry)
    }

    /// Waits until nobody uses a model any more, and frees it. Only for who holds `loading`.
    async fn unload(&self, entry: &Entry) {
        if !entry.change(State::leave) {
            return;
        }
        let service = loop {
            if let Some(service) = entry.state().take_unused() {
                break service;
            }
            sleep(POLL).await;
        };
        let backend = Arc::downgrade(&service.backend());
        drop(service);
        // What takes no memory of its own is not waited for.
        let time = if entry.state().total_bytes > 0 { FREE_TIME } else { Duration::ZERO };
        let until = Instant::now() + time;
        while backend.strong_count() > 0 && Instant::now() < until {
            sleep(POLL).await;
        }
        tracing::info!(model = entry.id, "unloaded");
        self.metrics.loaded(&entry.id, false);
        entry.change(|state| {
            state.phase = Phase::Absent;
            state.total_bytes = 0;
        });
    }

    /// Unloads models whose time is over, for as long as the server lives.
    async fn unload_expired(self: Arc<Self>) {
        while !self.is_stopping.load(Ordering::Relaxed) {
            let mut next = None;
            for entry in &self.entries {
                let Some(left) = entry.idle_time_left() else { continue };
                if left > Duration::ZERO {
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                    continue;
                }
                let _turn = self.loading.lock().await;
                // It may have been used while this waited.
                if entry.idle_time_left() == Some(Duration::ZERO) {
                    self.unload(entry).await;
                }
            }
            match next {
                Some(time) => _ = tokio::time::timeout(time, self.released.notified()).await,
                None => self.released.notified().await,
            }
        }
    }
}

impl Entry {
    /// What is left of the time that a loaded, idle model is kept; `None` for others, and where it is kept for ever.
    fn idle_time_left(&self) -> Option<Duration> {
        let state = self.state();
        match (&state.phase, state.keep_alive) {
            (Phase::Loaded(service), KeepAlive::For(time)) if Arc::strong_count(service) == 1 => {
                Some(time.saturating_sub(state.last_used.elapsed()))
            }
            _ => None,
        }
    }
}

/// After a load that failed.
const RETRY_AFTER_S: u64 = 5;

/// Runs something long on a plain thread: the runtime would wait for a blocking task, and a shutdown must not.
async fn on_thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, BoxError> {
    let (sender, done) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // An error means that the server ended meanwhile.
        let _ = sender.send(work());
    })?;
    done.await.map_err(|_| "the loader panicked".into())
}
