//! The thread that writes the log, and what happens while it cannot.

use super::{AuditError, LogConfig, log::Log, record::Entry};
use crate::{error::ApiError, metrics::AuditMetrics};
use std::{
    collections::VecDeque,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

/// Records that wait for a disk that does not take them; more are counted and lost.
const MAX_WAITING: usize = 1024;
const RETRY: Duration = Duration::from_secs(1);

/// What becomes of requests while their records cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// They are refused.
    #[default]
    Refuse,
    /// They are answered; records that cannot be kept are counted in the log once it can be written.
    Continue,
}

impl FromStr for OnFailure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "continue" => Ok(Self::Continue),
            _ => Err(format!("`{text}` is neither refuse nor continue")),
        }
    }
}

/// How a server keeps its log.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// The files.
    pub log: LogConfig,
    /// A checkpoint after so many records …
    pub checkpoint_records: u64,
    /// … or when the oldest record without one is as old as this.
    pub checkpoint_interval: Duration,
    /// What becomes of requests while it cannot be written.
    pub on_failure: OnFailure,
    /// Prompts and answers are recorded too.
    pub with_content: bool,
}

/// What the rest of the server knows of the log.
pub(crate) struct AuditState {
    on_failure: OnFailure,
    pub(crate) with_content: bool,
    is_failing: AtomicBool,
    waiting: AtomicUsize,
    lost: AtomicU64,
    metrics: AuditMetrics,
    sender: Mutex<Option<Sender<(SystemTime, Entry)>>>,
}

impl AuditState {
    /// An error while requests have to be refused.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        match self.is_failing.load(Ordering::Relaxed) && self.on_failure == OnFailure::Refuse {
            true => Err(ApiError::AuditUnavailable),
            false => Ok(()),
        }
    }

    /// Whether records cannot be written now.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Hands a record over to be written.
    pub(crate) fn record(&self, entry: Entry) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = self.waiting.load(Ordering::Relaxed) < MAX_WAITING;
        let sent = match &*sender {
            Some(sender) if has_room => sender.send((SystemTime::now(), entry)).is_ok(),
            _ => false,
        };
        if sent {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.metrics.lost.inc();
        }
    }
}

/// The log of a running server. Dropping it writes what waits and closes the log.
pub(crate) struct Audit {
    state: Arc<AuditState>,
    thread: Option<JoinHandle<()>>,
}

impl Audit {
    /// Opens the log and starts its thread.
    pub(crate) fn start(config: AuditConfig, metrics: AuditMetrics) -> Result<Self, AuditError> {
        if config.checkpoint_records == 0 || config.checkpoint_interval.is_zero() {
            return Err(AuditError::Setting("checkpoints need a number of records and a time above 0".to_owned()));
        }
        let log = Log::open(config.log.clone())?;
        metrics.sequence.set(i64::try_from(log.place().records).unwrap_or(i64::MAX));
        let (sender, receiver) = mpsc::channel();
        let state = Arc::new(AuditState {
            on_failure: config.on_failure,
            with_content: config.with_content,
            is_failing: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            metrics,
            sender: Mutex::new(Some(sender)),
        });
        let path = config.log.path.clone();
        let writer = Writer { log, config, state: Arc::clone(&state), backlog: VecDeque::new(), oldest: None };
        let thread = thread::Builder::new().name("edgelm-audit".to_owned()).spawn(move || writer.run(&receiver));
        let thread = thread.map_err(AuditError::io("start the thread of", path))?;
        Ok(Self { state, thread: Some(thread) })
    }

    pub(crate) fn state(&self) -> Arc<AuditState> {
        Arc::clone(&self.state)
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.state.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit log's thread panicked");
        }
    }
}

struct Writer {
    log: Log,
    config: AuditConfig,
    state: Arc<AuditState>,
    backlog: VecDeque<(SystemTime, Entry)>,
    /// When the oldest record without a checkpoint was written.
    oldest: Option<Instant>,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<(SystemTime, Entry)>) {
        loop {
            let is_closing = match receiver.recv_timeout(self.patience()) {
                Ok(record) => {
                    self.backlog.push_back(record);
                    self.backlog.extend(receiver.try_iter().take(MAX_WAITING));
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let outcome = self.work().and_then(|()| if is_closing { self.log.checkpoint(true) } else { Ok(()) });
            self.tell(outcome);
            if is_closing {
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        if self.state.is_failing() {
            return RETRY;
        }
        match self.oldest {
            Some(oldest) => self.config.checkpoint_interval.saturating_sub(oldest.elapsed()),
            None => self.config.checkpoint_interval,
        }
    }

    /// Writes what waits, and the checkpoint that is due.
    fn work(&mut self) -> Result<(), AuditError> {
        let lost = self.state.lost.load(Ordering::Relaxed);
        if lost > 0 {
            self.log.append(SystemTime::now(), &Entry::Lost { records: lost })?;
            self.state.lost.fetch_sub(lost, Ordering::Relaxed);
            self.oldest.get_or_insert_with(Instant::now);
        }
        while let Some((time, entry)) = self.backlog.front() {
            self.log.append(*time, entry)?;
            self.backlog.pop_front();
            self.state.waiting.fetch_sub(1, Ordering::Relaxed);
            self.state.metrics.records.inc();
            self.oldest.get_or_insert_with(Instant::now);
        }
        self.log.sync_records()?;
        let is_old = self.oldest.is_some_and(|oldest| oldest.elapsed() >= self.config.checkpoint_interval);
        if is_old || self.log.unsigned() >= self.config.checkpoint_records {
            self.log.checkpoint(false)?;
            self.oldest = None;
        }
        Ok(())
    }

    fn tell(&self, outcome: Result<(), AuditError>) {
        let metrics = &self.state.metrics;
        metrics.sequence.set(i64::try_from(self.log.place().records).unwrap_or(i64::MAX));
        let is_failing = outcome.is_err();
        let was_failing = self.state.is_failing.swap(is_failing, Ordering::Relaxed);
        metrics.failing.set(i64::from(is_failing));
        match outcome {
            Err(error) => {
                metrics.failures.inc();
                if !was_failing {
                    let what = match self.config.on_failure {
                        OnFailure::Refuse => "requests are refused until it can be",
                        OnFailure::Continue => "requests are answered all the same",
                    };
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the audit log cannot be written; {what}"
                    );
                }
            }
            Ok(()) if was_failing => tracing::warn!("the audit log can be written again"),
            Ok(()) => {}
        }
    }
}
