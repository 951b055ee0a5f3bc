//! What goes to the collector: spans, snapshots of the metrics and, where they are kept, inputs; and what becomes of it while the
//! collector is away.
//!
//! One thread sends everything, a batch after the other, in the order in which it came. What cannot be delivered goes to a
//! [`Spool`] on the disk, if there is one, and all that follows behind it; when the collector is back, the oldest goes first.
//! Nothing that answers a request ever waits for any of this.

mod collector;
mod inputs;
mod key;
mod snapshot;
mod spool;

pub use collector::otlp_headers;

use super::{Journey, journey::Ended};
use crate::{
    ServeError,
    metrics::{ForwardMetrics, Metrics},
    service::unix_now,
};
use collector::{Collector, Delivery};
use inputs::nanos;
use opentelemetry_proto::{
    tonic::{
        collector::{
            logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
            trace::v1::ExportTraceServiceRequest,
        },
        logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
        metrics::v1::{ResourceMetrics, ScopeMetrics},
        resource::v1::Resource as ResourceMessage,
    },
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use prost::Message;
use spool::{Dropped, Spool};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Handle, sync::watch, time::sleep};

/// Batches that wait for the thread; what comes on top is lost, and counted.
const WAITING: usize = 256;
/// Inputs that go together, and how long the first of them waits for others.
const INPUTS: usize = 64;
const INPUTS_BYTES: usize = 256 << 10;
const INPUTS_WAIT: Duration = Duration::from_secs(5);
/// Between attempts while the collector is away: from this, twice as long each time, to that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For what is left when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where telemetry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `http://host:4317` or `https://…`: OTLP over gRPC.
    pub endpoint: String,
    /// The authorities (PEM) that an `https` collector has its certificate from; `None` = those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Sent with every batch: keys, most of the time.
    pub headers: Vec<(String, String)>,
    /// Time between snapshots of the metrics; `None` = none is sent.
    pub metrics_interval: Option<Duration>,
    /// Send the prompts, too.
    pub keep_inputs: bool,
    /// Where what cannot be delivered waits; `None` = it is lost.
    pub forward: Option<ForwardConfig>,
}

impl OtlpConfig {
    /// Traces alone, to this collector.
    pub fn new(endpoint: &str) -> Self {
        let (endpoint, headers) = (endpoint.to_owned(), Vec::new());
        Self { endpoint, ca: None, headers, metrics_interval: None, keep_inputs: false, forward: None }
    }
}

/// A folder for what waits for the collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// For this server alone.
    pub folder: PathBuf,
    /// The oldest go beyond it.
    pub limit_bytes: u64,
    /// The file of the key; `None` = `key` in the folder. It is made where there is none.
    pub key: Option<PathBuf>,
    /// What is older is not sent any more.
    pub max_age: Duration,
}

/// Why nothing can wait on the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// A file or folder that cannot be used.
    #[error("`{path}` cannot be used to keep telemetry")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the key.
    #[error("`{path}` {what}")]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong; never quotes the key.
        what: String,
    },
    /// No key can be made.
    #[error("the system gives no random numbers")]
    Random,
}

/// What a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Traces = 1,
    Metrics = 2,
    Logs = 3,
}

impl Kind {
    fn from_number(number: u64) -> Option<Self> {
        [Self::Traces, Self::Metrics, Self::Logs].into_iter().find(|kind| *kind as u64 == number)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "inputs",
        }
    }

    /// The call that takes it.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }
}

enum Item {
    Batch(Kind, Vec<u8>),
    Input(Box<LogRecord>),
    /// Look whether it is time to end.
    Wake,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Forwarder {
    sender: SyncSender<Item>,
    stop: Arc<watch::Sender<bool>>,
    /// Something comes when the thread has ended.
    ended: Arc<Mutex<Receiver<()>>>,
    metrics: ForwardMetrics,
    keeps_inputs: bool,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forwarder")
    }
}

impl Forwarder {
    /// Starts the thread. To be called inside the runtime, which carries the connection.
    pub(super) fn start(config: &OtlpConfig, resource: &Resource, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let collector = Collector::new(config)?;
        let spool = config.forward.clone().map(Spool::open).transpose()?;
        let (sender, items) = sync_channel(WAITING);
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = sync_channel(1);
        let counts = metrics.forward.clone();
        let resource = ResourceAttributesWithSchema::from(resource).attributes.0;
        let courier = Courier {
            collector,
            spool,
            runtime: Handle::current(),
            stopping,
            counts: counts.clone(),
            dropped: Dropped::default(),
            is_away: false,
            pause: FIRST_PAUSE,
            next_attempt: Instant::now(),
            resource: ResourceMessage { attributes: resource, ..ResourceMessage::default() },
            inputs: Vec::new(),
            inputs_bytes: 0,
            inputs_due: None,
            metrics,
            snapshots: config.metrics_interval,
            next_snapshot: config.metrics_interval.map(|interval| Instant::now() + interval),
            begun: nanos(SystemTime::now()),
        };
        let work = move || {
            courier.work(&items);
            // An error means that nobody waits for it.
            let _ = end.try_send(());
        };
        thread::Builder::new().name("edgelm-forward".to_owned()).spawn(work).map_err(ServeError::Thread)?;
        let ended = Arc::new(Mutex::new(ended));
        Ok(Self { sender, stop: Arc::new(stop), ended, metrics: counts, keeps_inputs: config.keep_inputs })
    }

    /// Whether prompts are wanted.
    pub(super) fn keeps_inputs(&self) -> bool {
        self.keeps_inputs
    }

    /// A request is over.
    pub(super) fn ended(&self, journey: &Journey, ended: &Ended) {
        if self.keeps_inputs
            && let Some(record) = inputs::record(journey, ended)
        {
            self.give(Item::Input(Box::new(record)));
        }
    }

    fn give(&self, item: Item) {
        if self.sender.try_send(item).is_err() {
            self.metrics.dropped("busy", 1);
        }
    }

    /// Sends what is left, or keeps it. Blocks for a few seconds at most.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
        let _ = self.sender.try_send(Item::Wake);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(2 * LAST_WORDS).is_err() {
            tracing::warn!("the last telemetry could not be sent");
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        self.forwarder.give(Item::Batch(Kind::Traces, request.encode_to_vec()));
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Gives spans to the thread.
#[derive(Debug)]
pub(super) struct Exporter {
    forwarder: Forwarder,
    resource: ResourceAttributesWithSchema,
}

impl Exporter {
    pub(super) fn new(forwarder: Forwarder) -> Self {
        Self { forwarder, resource: ResourceAttributesWithSchema::default() }
    }
}

/// The thread.
struct Courier {
    collector: Collector,
    spool: Option<Spool>,
    runtime: Handle,
    stopping: watch::Receiver<bool>,
    counts: ForwardMetrics,
    /// As last told to the metrics.
    dropped: Dropped,
    is_away: bool,
    pause: Duration,
    next_attempt: Instant,
    resource: ResourceMessage,
    inputs: Vec<LogRecord>,
    inputs_bytes: usize,
    inputs_due: Option<Instant>,
    metrics: Arc<Metrics>,
    snapshots: Option<Duration>,
    next_snapshot: Option<Instant>,
    /// When counters began, in nanoseconds since 1970.
    begun: u64,
}

impl Courier {
    fn work(mut self, items: &Receiver<Item>) {
        self.show();
        while !*self.stopping.borrow() {
            let backlog = self.has_backlog().then_some(self.next_attempt);
            let due = [backlog, self.inputs_due, self.next_snapshot].into_iter().flatten().min();
            let wait = due.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
            match items.recv_timeout(wait) {
                Ok(item) => self.take(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.keep_time();
            self.show();
        }
        // What has come until now, and a last attempt.
        let end = Instant::now() + LAST_WORDS;
        while let Ok(item) = items.try_recv() {
            self.take(item);
        }
        self.flush_inputs();
        self.next_attempt = Instant::now();
        while self.has_backlog() && Instant::now() < end && self.next_attempt <= Instant::now() {
            self.send_oldest();
        }
        self.show();
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Batch(kind, content) => self.batch(kind, content),
            Item::Input(record) => {
                self.inputs_bytes += record.encoded_len();
                self.inputs.push(*record);
                self.inputs_due.get_or_insert_with(|| Instant::now() + INPUTS_WAIT);
                if self.inputs.len() >= INPUTS || self.inputs_bytes >= INPUTS_BYTES {
                    self.flush_inputs();
                }
            }
            Item::Wake => {}
        }
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.inputs_due.is_some_and(|due| due <= now) {
            self.flush_inputs();
        }
        if self.next_snapshot.is_some_and(|due| due <= now) {
            self.next_snapshot = self.snapshots.map(|interval| now + interval);
            self.snapshot();
        }
        if self.has_backlog() && self.next_attempt <= Instant::now() {
            self.send_oldest();
        }
    }

    fn flush_inputs(&mut self) {
        self.inputs_due = None;
        self.inputs_bytes = 0;
        let log_records = std::mem::take(&mut self.inputs);
        if log_records.is_empty() {
            return;
        }
        let scope_logs = ScopeLogs { scope: Some(inputs::scope()), log_records, ..ScopeLogs::default() };
        let (resource, scope_logs) = (Some(self.resource.clone()), vec![scope_logs]);
        let resource_logs = vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }];
        self.batch(Kind::Logs, ExportLogsServiceRequest { resource_logs }.encode_to_vec());
    }

    fn snapshot(&mut self) {
        let Ok(text) = self.metrics.render_own() else { return };
        let metrics = snapshot::metrics(&text, self.begun, nanos(SystemTime::now()));
        let scope_metrics = ScopeMetrics { scope: Some(inputs::scope()), metrics, ..ScopeMetrics::default() };
        let (resource, scope_metrics) = (Some(self.resource.clone()), vec![scope_metrics]);
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        self.batch(Kind::Metrics, ExportMetricsServiceRequest { resource_metrics }.encode_to_vec());
    }

    fn has_backlog(&self) -> bool {
        self.spool.as_ref().is_some_and(|spool| !spool.is_empty())
    }

    /// Sends a batch, or lets it wait behind those that wait already.
    fn batch(&mut self, kind: Kind, content: Vec<u8>) {
        // At the end one attempt has to do.
        let is_hopeless = self.is_away && *self.stopping.borrow();
        if self.has_backlog() || is_hopeless || !self.deliver(kind, content.clone()) {
            match &mut self.spool {
                Some(spool) => {
                    spool.push(kind, &content, unix_now());
                    self.counts.stored(kind.name());
                }
                None => self.counts.dropped("undelivered", 1),
            }
        }
    }

    /// Sends the batch that has waited for longest.
    fn send_oldest(&mut self) {
        let Some((kind, content)) = self.spool.as_mut().and_then(|spool| spool.front(unix_now())) else { return };
        if self.deliver(kind, content)
            && let Some(spool) = &mut self.spool
        {
            spool.pop();
        }
    }

    /// True where the collector has it, or does not want it.
    fn deliver(&mut self, kind: Kind, content: Vec<u8>) -> bool {
        let mut stopping = self.stopping.clone();
        let stopped = async move {
            // An error means that nobody is left to say so.
            let _ = stopping.wait_for(|&stop| stop).await;
            sleep(LAST_WORDS).await;
        };
        let collector = &self.collector;
        let delivery = self.runtime.block_on(async {
            tokio::select! {
                delivery = collector.deliver(kind, content.into()) => delivery,
                () = stopped => Delivery::Later("the server ends".to_owned()),
            }
        });
        match delivery {
            Delivery::Taken { refused } => {
                self.counts.sent(kind.name());
                self.counts.dropped("refused", u64::from(refused > 0));
            }
            Delivery::Refused(why) => {
                tracing::warn!(kind = kind.name(), why, "the collector does not take this; it is dropped");
                self.counts.dropped("refused", 1);
            }
            Delivery::Later(why) => {
                if !self.is_away {
                    let kept = self.spool.is_some();
                    tracing::warn!(why, kept, "the collector cannot be reached");
                }
                self.is_away = true;
                self.next_attempt = Instant::now() + self.pause;
                self.pause = (2 * self.pause).min(LONGEST_PAUSE);
                return false;
            }
        }
        if self.is_away {
            tracing::warn!("the collector is back");
        }
        (self.is_away, self.pause, self.next_attempt) = (false, FIRST_PAUSE, Instant::now());
        true
    }

    /// Tells the metrics what is there.
    fn show(&mut self) {
        let Some(spool) = &self.spool else { return };
        let (batches, bytes) = spool.size();
        self.counts.waiting(batches, bytes);
        let (before, now) = (self.dropped, spool.dropped());
        for (reason, count) in [
            ("full", now.full - before.full),
            ("expired", now.expired - before.expired),
            ("corrupt", now.corrupt - before.corrupt),
            ("unwritten", now.unwritten - before.unwritten),
        ] {
            if count > 0 {
                tracing::warn!(reason, count, "telemetry that waited for the collector was dropped");
                self.counts.dropped(reason, count);
            }
        }
        self.dropped = now;
    }
}
