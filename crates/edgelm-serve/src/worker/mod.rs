//! The engine thread and the way to it: jobs wait in a fair queue, run several at a time, and report over a channel each.
//!
//! The channel is also how a job is cancelled: when its receiver is dropped, generation stops with the pass that is under
//! way, and a job that still waits is skipped.

mod pace;
mod queue;
mod restarts;
mod schedule;
mod watchdog;

use crate::{
    ServeError,
    backend::Backend,
    caller::Client,
    error::ApiError,
    metrics::{Metrics, Parts, seconds},
    telemetry::Journey,
    turns::{Account, Turn, Turns},
};
use edgelm_engine::{GenerateOptions, Saving};
use queue::Queue;
use restarts::Restarts;
use schedule::Schedule;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;
use watchdog::Watchdog;

/// A model that goes saves what it keeps for so long at most: somebody may wait for its memory, or for the process to end.
const SAVE_TIME: Duration = Duration::from_secs(5);

/// One request, checked and tokenized.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    /// The request field that `prompt` came from, for errors.
    pub(crate) prompt_param: &'static str,
    /// One entry per choice. They run together, and are reported one after the other.
    pub(crate) choices: Vec<GenerateOptions>,
    pub(crate) received: Instant,
    pub(crate) client: Client,
    /// Smaller goes first.
    pub(crate) priority: i64,
    /// It fails then.
    pub(crate) deadline: Option<Instant>,
    pub(crate) aside: Arc<Aside>,
    /// Where to note how far it is.
    pub(crate) journey: Arc<Journey>,
    /// Unbounded, so that a slow reader cannot hold up the engine; the context length bounds what it can pile up.
    pub(crate) events: UnboundedSender<Event>,
}

/// What the engine and whoever reads tell each other beside the events.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// Prompt tokens that did not have to be computed. Known before the first event.
    pub(crate) cached_tokens: AtomicUsize,
    /// The reader has all it wants: it leaves before the end, and the answer is a good one.
    pub(crate) is_enough: AtomicBool,
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

impl StopReason {
    /// As metrics and logs name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A token with its probability, as text.
#[derive(Debug, Clone)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(String, f32)>,
}

/// How the engine thread works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerConfig {
    /// Generations that run at once.
    pub(crate) parallel: usize,
    /// A pass that takes longer hangs.
    pub(crate) pass_limit: Duration,
    /// Times that a new engine thread takes the place of one that hangs or panics, in ten minutes.
    pub(crate) restarts: usize,
    /// What is kept is saved when nobody has touched it for so long.
    pub(crate) save_delay: Duration,
}

/// Why the engine thread goes on.
enum Wake {
    /// A job waits.
    Work,
    /// The time is over.
    Time,
    /// It has to end.
    End,
}

/// The way to the engine thread. Dropping it stops the thread after the pass it is at.
pub(crate) struct Worker {
    shared: Arc<Shared>,
}

/// What the engine thread, the watchdog and the server's tasks have in common.
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    stopping: AtomicBool,
    /// The engine thread has done all it will.
    ended: AtomicBool,
    /// Running mean of how long a job occupies the engine.
    mean_job_ms: AtomicU64,
    /// Of the engine thread, which is another one after a restart.
    seat: RwLock<Seat>,
    restarts: Restarts,
    config: WorkerConfig,
    turns: Arc<Turns>,
    account: Arc<Account>,
    metrics: Arc<Metrics>,
    parts: Parts,
}

/// An engine thread and its model.
#[derive(Clone)]
struct Seat {
    backend: Arc<dyn Backend>,
    watchdog: Arc<Watchdog>,
}

impl Seat {
    fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, watchdog: Arc::default() }
    }
}

impl Worker {
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        config: WorkerConfig,
        turns: Arc<Turns>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ServeError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            mean_job_ms: AtomicU64::new(0),
            seat: RwLock::new(Seat::new(backend)),
            restarts: Restarts::new(config.restarts),
            config,
            turns,
            account: Arc::default(),
            metrics,
            parts: Parts::default(),
        });
        shared.spawn(shared.seat()).map_err(ServeError::Thread)?;
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("edgelm-watchdog".to_owned())
            .spawn(move || theirs.watch())
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
        queue.push(job);
        self.shared.show_depth(&queue);
        self.shared.wake.notify_all();
    }

    /// The model.
    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        self.shared.seat().backend
    }

    /// An error while the engine hangs.
    pub(crate) fn check_alive(&self) -> Result<(), ApiError> {
        if self.shared.seat().watchdog.is_stalled() { Err(ApiError::Stalled) } else { Ok(()) }
    }

    /// A turn at the CPU, for work beside the passes. Blocks.
    pub(crate) fn turn(&self) -> impl FnOnce() -> Turn + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.turns.take(&shared.account)
    }

    /// Whole seconds after which a slot is likely free, 1 to 60: as the jobs before it took, so many at a time.
    pub(crate) fn retry_after_s(&self) -> u64 {
        let parallel = u64::try_from(self.shared.config.parallel).unwrap_or(u64::MAX).max(1);
        let waves = u64::try_from(self.shared.queue().len()).unwrap_or(u64::MAX) / parallel + 1;
        self.shared.mean_job_ms.load(Ordering::Relaxed).saturating_mul(waves).div_ceil(1000).clamp(1, 60)
    }

    /// Fails what waits, stops what runs with the pass it is at, and ends the threads.
    pub(crate) fn stop(&self) {
        let mut queue = self.shared.queue();
        self.shared.stopping.store(true, Ordering::Relaxed);
        for job in queue.drain() {
            job.fail(ApiError::ShuttingDown);
        }
        self.shared.show_depth(&queue);
        self.shared.wake.notify_all();
    }

    /// Waits, after a stop, for the engine thread to have saved what it keeps. Blocks; not for longer than that may take.
    pub(crate) fn settle(&self) {
        let queue = self.shared.queue();
        let is_on = |_: &mut Queue| !self.shared.ended.load(Ordering::Relaxed);
        drop(self.shared.wake.wait_timeout_while(queue, SAVE_TIME, is_on));
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

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

impl Shared {
    fn seat(&self) -> Seat {
        self.seat.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts an engine thread.
    fn spawn(self: &Arc<Self>, seat: Seat) -> std::io::Result<()> {
        let theirs = Arc::clone(self);
        thread::Builder::new().name("edgelm-engine".to_owned()).spawn(move || theirs.work(&seat)).map(drop)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_depth(&self, queue: &Queue) {
        self.parts.waiting.set(&self.metrics.waiting, i64::try_from(queue.len()).unwrap_or(i64::MAX));
    }

    /// Whether anybody waits for a job, and it can still be in time. Says so to those who have waited in vain.
    fn still_wanted(&self, job: &Job) -> bool {
        if job.events.is_closed() {
            match job.aside.is_enough.load(Ordering::Relaxed) {
                true => self.metrics.finished(StopReason::Stop),
                false => _ = self.metrics.cancelled.inc(),
            }
            return false;
        }
        if job.is_late() {
            self.metrics.late.inc();
            job.fail(ApiError::DeadlineExceeded);
            return false;
        }
        true
    }

    /// The next job, if one waits.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        let job = loop {
            match queue.pop() {
                Some(job) if !self.still_wanted(&job) => {}
                other => break other,
            }
        };
        self.show_depth(&queue);
        job
    }

    /// Sleeps until there is something to do, for this time at most; `None` = for any.
    fn wait(&self, limit: Option<Duration>) -> Wake {
        let is_idle = |queue: &mut Queue| queue.len() == 0 && !self.stopping.load(Ordering::Relaxed);
        let (queue, limit) = (self.queue(), limit.unwrap_or(Duration::MAX));
        let waited = self.wake.wait_timeout_while(queue, limit, is_idle).unwrap_or_else(PoisonError::into_inner);
        match waited {
            _ if self.stopping.load(Ordering::Relaxed) => Wake::End,
            (queue, _) if queue.len() > 0 => Wake::Work,
            _ => Wake::Time,
        }
    }

    /// The engine thread: a schedule, and a new one whenever the last is lost.
    fn work(&self, seat: &Seat) {
        self.schedules(seat);
        if !seat.watchdog.is_abandoned() {
            self.metrics.withdraw(&self.parts);
            let queue = self.queue();
            self.ended.store(true, Ordering::Relaxed);
            drop(queue);
            self.wake.notify_all();
        }
    }

    fn schedules(&self, seat: &Seat) {
        loop {
            let mut schedule = match seat.backend.lanes() {
                Ok(lanes) => Schedule::new(self, seat, lanes),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the engine cannot start");
                    self.give_up(&seat.watchdog, &mut self.queue());
                    return;
                }
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| self.follow(&mut schedule, seat)));
            if seat.watchdog.is_abandoned() {
                return;
            }
            if outcome.is_ok() {
                let end = Instant::now() + SAVE_TIME;
                while Instant::now() < end && schedule.save_next(Duration::ZERO) == Saving::Written {}
                return;
            }
            // Not a pass, which a schedule survives, but what comes before or after it: who caused it is not known.
            tracing::error!("the scheduler panicked; what ran fails, and what it had kept is lost");
            self.metrics.engine_panics.inc();
            seat.watchdog.end();
            self.metrics.ready.set(1);
            schedule.lose(&ApiError::Internal);
            if !self.restarts.take() {
                self.give_up(&seat.watchdog, &mut self.queue());
                return;
            }
            self.metrics.engine_restarts.inc();
        }
    }

    /// The engine is not started again: nothing is taken any more, and `/health` says so.
    fn give_up(&self, watchdog: &Watchdog, queue: &mut Queue) {
        tracing::error!("the engine is not started again; no requests are taken");
        watchdog.give_up();
        self.metrics.ready.set(0);
        for job in queue.drain() {
            job.fail(ApiError::Stalled);
        }
        self.show_depth(queue);
    }

    /// Until the thread has to end.
    fn follow(&self, schedule: &mut Schedule<'_>, seat: &Seat) {
        while !seat.watchdog.is_abandoned() {
            if schedule.is_idle() {
                let more = self.save(schedule);
                // Those that the last pass finished are gone only now.
                schedule.show();
                match self.wait(more) {
                    Wake::Work => {}
                    Wake::Time => continue,
                    Wake::End => return,
                }
            }
            if self.stopping.load(Ordering::Relaxed) {
                schedule.fail_all(&ApiError::ShuttingDown);
                return;
            }
            schedule.pass();
        }
    }

    /// Saves what nobody has touched for a while, as long as nothing else is to be done. Returns when there is more to save.
    fn save(&self, schedule: &mut Schedule<'_>) -> Option<Duration> {
        while self.queue().len() == 0 && !self.stopping.load(Ordering::Relaxed) {
            match schedule.save_next(self.config.save_delay) {
                Saving::Written => {}
                Saving::After(time) => return Some(time),
                Saving::Nothing => break,
            }
        }
        None
    }

    fn job_took(&self, time: Duration) {
        let took = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mean = self.mean_job_ms.load(Ordering::Relaxed);
        self.mean_job_ms.store(if mean == 0 { took } else { mean / 4 * 3 + took / 4 }, Ordering::Relaxed);
    }

    /// The watchdog's thread.
    fn watch(self: &Arc<Self>) {
        let limit = self.config.pass_limit;
        let interval = (limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            let queue = self.queue();
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            drop(self.wake.wait_timeout(queue, interval).unwrap_or_else(PoisonError::into_inner));
            let seat = self.seat();
            let Some((time, turn)) = seat.watchdog.newly_stalled(limit) else { continue };
            // Other models must not wait for it.
            self.turns.revoke(turn);
            self.metrics.stalls.inc();
            self.metrics.ready.set(0);
            tracing::error!(time_s = seconds(time), "a pass hangs; its requests fail");
            match self.restart(&seat) {
                Ok(()) => {
                    tracing::warn!("a new engine thread goes on");
                    self.metrics.engine_restarts.inc();
                    self.metrics.ready.set(1);
                }
                Err(error) => {
                    tracing::error!(error, "no new engine thread");
                    self.give_up(&seat.watchdog, &mut self.queue());
                }
            }
        }
    }

    /// A new engine thread with the same weights in the place of one that hangs.
    fn restart(self: &Arc<Self>, hung: &Seat) -> Result<(), String> {
        if !self.restarts.take() {
            return Err("it was restarted too often".to_owned());
        }
        let backend = hung.backend.restarted().map_err(|error| error.to_string())?;
        let seat = Seat::new(backend.unwrap_or_else(|| Arc::clone(&hung.backend)));
        hung.watchdog.abandon();
        *self.seat.write().unwrap_or_else(PoisonError::into_inner) = seat.clone();
        self.spawn(seat).map_err(|error| error.to_string())
    }
}
