//! The engine thread: takes jobs in order, generates one at a time, reports what happens over each job's channel.
//!
//! The channel is also how a job is cancelled: when its receiver is dropped, generation stops at the next token, and a
//! job that still waits is skipped. A panic in the backend fails that job alone; the thread goes on.

use crate::{
    ServeError,
    backend::Backend,
    error::ApiError,
    metrics::{Metrics, seconds},
};
use edgelm_engine::{FinishReason, GenerateOptions, Piece};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};
use tokio::sync::mpsc::UnboundedSender;

/// One request, checked and tokenized.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    /// The request field that `prompt` came from, for errors.
    pub(crate) prompt_param: &'static str,
    /// One entry per choice, generated one after the other.
    pub(crate) choices: Vec<GenerateOptions>,
    pub(crate) received: Instant,
    /// Unbounded, so that a slow reader cannot hold up the engine; the context length bounds what it can pile up.
    pub(crate) events: UnboundedSender<Event>,
}

/// What a job's channel carries. The last event is `Failed` or the last choice's `Finished`.
#[derive(Debug)]
pub(crate) enum Event {
    Piece { text: String, logprob: Option<TokenLogprob> },
    Finished { reason: StopReason, generated_tokens: usize },
    Failed(ApiError),
}

/// Why a choice ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    Stop,
    Length,
}

/// A token with its probability, as text.
#[derive(Debug, Clone)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(String, f32)>,
}

/// The way to the engine thread. Dropping it stops the thread after the token it is at.
pub(crate) struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<VecDeque<Job>>,
    wake: Condvar,
    stopping: AtomicBool,
    /// Running mean of how long a job occupies the engine.
    mean_job_ms: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Worker {
    pub(crate) fn start(backend: Arc<dyn Backend>, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            mean_job_ms: AtomicU64::new(0),
            metrics,
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("edgelm-engine".to_owned())
            .spawn(move || theirs.work(&*backend))
            .map_err(ServeError::Thread)?;
        Ok(Self { shared })
    }

    /// Appends a job. Jobs whose client went away are dropped here, so the queue is no longer than what admission allows.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.shared.queue();
        if self.shared.stopping.load(Ordering::Relaxed) {
            job.fail(ApiError::ShuttingDown);
            return;
        }
        queue.retain(|waiting| self.shared.still_wanted(waiting));
        queue.push_back(job);
        self.shared.show_depth(&queue);
        self.shared.wake.notify_one();
    }

    /// Whole seconds after which a slot is likely free, 1 to 60.
    pub(crate) fn retry_after_s(&self) -> u64 {
        self.shared.mean_job_ms.load(Ordering::Relaxed).div_ceil(1000).clamp(1, 60)
    }

    /// Fails what waits, stops what runs at its next token, and ends the thread.
    pub(crate) fn stop(&self) {
        let mut queue = self.shared.queue();
        self.shared.stopping.store(true, Ordering::Relaxed);
        for job in queue.drain(..) {
            job.fail(ApiError::ShuttingDown);
        }
        self.shared.show_depth(&queue);
        self.shared.wake.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Job {
    fn fail(&self, error: ApiError) {
        // An error here means that nobody listens any more.
        let _ = self.events.send(Event::Failed(error));
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(&self, queue: &VecDeque<Job>) {
        self.metrics.queue_depth.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
    }

    fn still_wanted(&self, job: &Job) -> bool {
        let wanted = !job.events.is_closed();
        if !wanted {
            self.metrics.cancelled.inc();
        }
        wanted
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            let job = queue.pop_front();
            self.show_depth(&queue);
            match job {
                Some(job) if self.still_wanted(&job) => return Some(job),
                Some(_) => {}
                None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn work(&self, backend: &dyn Backend) {
        while let Some(job) = self.next() {
            let started = Instant::now();
            self.metrics.running.set(1);
            // A backend keeps no state of a request between calls, so a panic leaves nothing half-done behind.
            if catch_unwind(AssertUnwindSafe(|| self.run(backend, &job))).is_err() {
                tracing::error!("the engine panicked; the request fails, the server goes on");
                self.metrics.engine_panics.inc();
                job.fail(ApiError::Internal);
            }
            self.metrics.running.set(0);
            self.metrics.duration.observe(seconds(job.received.elapsed()));
            let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let mean = self.mean_job_ms.load(Ordering::Relaxed);
            self.mean_job_ms.store(if mean == 0 { took } else { mean / 4 * 3 + took / 4 }, Ordering::Relaxed);
        }
    }

    fn run(&self, backend: &dyn Backend, job: &Job) {
        for (choice, options) in job.choices.iter().enumerate() {
            let mut last_token: Option<Instant> = None;
            let mut on_piece = |piece: &Piece| {
                if piece.token.is_some() {
                    let now = Instant::now();
                    match last_token.replace(now) {
                        // A later choice's first token has waited for the earlier choices: neither kind of latency.
                        None if choice > 0 => {}
                        None => self.metrics.time_to_first_token.observe(seconds(now - job.received)),
                        Some(before) => self.metrics.inter_token.observe(seconds(now - before)),
                    }
                    self.metrics.generated_tokens.inc();
                }
                let event = Event::Piece { text: piece.text.clone(), logprob: token_logprob(backend, piece) };
                if job.events.send(event).is_err() || self.stopping.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let prompt_tokens = u64::try_from(job.prompt.len()).unwrap_or(u64::MAX);
            self.metrics.prompt_tokens.inc_by(prompt_tokens);
            let generation = match backend.generate(&job.prompt, options, &mut on_piece) {
                Ok(generation) => generation,
                Err(error) => return job.fail(ApiError::from_engine(&error, job.prompt_param)),
            };
            let reason = match generation.finish_reason {
                FinishReason::Stop => StopReason::Stop,
                FinishReason::Length => StopReason::Length,
                FinishReason::Cancelled => {
                    self.metrics.cancelled.inc();
                    return job.fail(ApiError::ShuttingDown);
                }
            };
            let generated_tokens = generation.tokens.len();
            if job.events.send(Event::Finished { reason, generated_tokens }).is_err() {
                return;
            }
        }
    }
}

fn token_logprob(backend: &dyn Backend, piece: &Piece) -> Option<TokenLogprob> {
    let (token, logprob) = (piece.token?, piece.logprob?);
    let top = piece.top_logprobs.iter().map(|&(token, value)| (backend.token_text(token), value)).collect();
    Some(TokenLogprob { token: backend.token_text(token), logprob, top })
}
