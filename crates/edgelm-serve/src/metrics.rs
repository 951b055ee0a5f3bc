//! What is counted and measured, and its text form for Prometheus (OpenMetrics 1.0).
//!
//! What vLLM measures too has its name, with `edgelm_` for `vllm:`, and that name itself beside it, for dashboards as they are; so
//! it is with what `llama-server` measures. The rest is our own.

mod llama;
mod requests;

pub(crate) use requests::Ended;

use crate::{breaker::Circuit, listener::DoorMetrics, telemetry::Machine, worker::StopReason};
use edgelm_engine::{Guesses, KvMemory};
use llama::{Llama, Shared};
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use requests::Requests;
use std::{
    fmt,
    path::Path,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

/// Content type of [`Metrics::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of the counter of HTTP answers. `route` is the pattern, never the path a client sent, so its values are few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) method: &'static str,
    pub(crate) route: String,
    pub(crate) status: u16,
}

/// Labels of the counter of generations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishLabels {
    finished_reason: &'static str,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model_name: String,
}

/// A model, and what took its place: another model, or a lesser artifact of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FallbackLabels {
    model_name: String,
    by: String,
}

/// A worker's part of a gauge that all workers share: what it last set is taken back with the next value.
#[derive(Default)]
pub(crate) struct Part(AtomicI64);

impl Part {
    pub(crate) fn set(&self, gauge: &Gauge, value: i64) {
        gauge.inc_by(value - self.0.swap(value, Ordering::Relaxed));
    }

    /// The same for what is counted; it begins at zero again where a model is loaded anew.
    fn count(&self, counter: &Counter, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        let before = self.0.swap(value, Ordering::Relaxed);
        let more = if value < before { value } else { value - before };
        counter.inc_by(u64::try_from(more).unwrap_or(0));
    }
}

/// A worker's parts of the gauges that add up over models.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) waiting: Part,
    pub(crate) running: Part,
    used: Part,
    kept: Part,
    budget: Part,
    stored: Part,
    store_writes: Part,
    store_written_bytes: Part,
    store_reads: Part,
    store_write_failures: Part,
    store_bad_reads: Part,
}

/// What the files for kept beginnings do.
#[derive(Default)]
struct StoreMetrics {
    bytes: Gauge,
    writes: Counter,
    written_bytes: Counter,
    reads: Counter,
    write_failures: Counter,
    bad_reads: Counter,
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    /// The same under the names of others.
    aliases: Registry,
    llama: Llama,
    ended: Requests,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) waiting: Gauge,
    pub(crate) running: Gauge,
    pub(crate) queue_time: Histogram,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) duration: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) preemptions: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) late: Counter,
    pub(crate) engine_panics: Counter,
    pub(crate) stalls: Counter,
    pub(crate) engine_restarts: Counter,
    pub(crate) ready: Gauge,
    pub(crate) door: DoorMetrics,
    finished: Family<FinishLabels, Counter>,
    prefix_queries: Counter,
    prefix_hits: Counter,
    guesses_made: Counter,
    guesses_right: Counter,
    pass_sequences: Histogram,
    pass_tokens: Histogram,
    pass_time: Histogram,
    kv_usage: Gauge<f64, AtomicU64>,
    kv_used_bytes: Gauge,
    kv_kept_bytes: Gauge,
    kv_budget_bytes: Gauge,
    store: StoreMetrics,
    models_loaded: Family<ModelLabels, Gauge>,
    model_loads: Family<ModelLabels, Counter>,
    model_load_failures: Family<ModelLabels, Counter>,
    model_fallbacks: Family<FallbackLabels, Counter>,
    circuits: Family<ModelLabels, Gauge>,
    pub(crate) audit: AuditMetrics,
    pub(crate) health: HealthMetrics,
    pub(crate) forward: ForwardMetrics,
}

/// Of probes.
#[derive(Debug, Clone, Default)]
pub(crate) struct HealthMetrics {
    pub(crate) probes: Counter,
    pub(crate) mismatches: Counter,
    pub(crate) failing: Gauge,
    pub(crate) replaced: Counter,
    pub(crate) drift: Gauge<f64, AtomicU64>,
}

impl HealthMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("health_probes", "Probes of what models say", self.probes.clone());
        registry.register("health_mismatches", "Probes after which a model was taken out", self.mismatches.clone());
        registry.register("health_failing", "Models that do not say what they said at first", self.failing.clone());
        registry.register("health_replaced_files", "Models whose files changed while loaded", self.replaced.clone());
        registry.register(
            "health_perplexity_drift",
            "Logarithm of the last probe's perplexity over that at the first load",
            self.drift.clone(),
        );
    }
}

/// Of what goes to a collector.
#[derive(Debug, Clone, Default)]
pub(crate) struct ForwardMetrics {
    sent: Family<KindLabels, Counter>,
    stored: Family<KindLabels, Counter>,
    dropped: Family<ReasonLabels, Counter>,
    batches: Gauge,
    bytes: Gauge,
}

/// Labels of batches for the collector.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Labels of batches that it will never get.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl ForwardMetrics {
    fn register(&self, registry: &mut Registry) {
        // There from the start: the first loss is an increase only over a zero that was seen.
        for reason in ["busy", "undelivered", "refused", "full", "expired", "corrupt", "unwritten"] {
            drop(self.dropped.get_or_create(&ReasonLabels { reason }));
        }
        registry.register("forward_sent_batches", "Batches that the collector has acknowledged", self.sent.clone());
        registry.register(
            "forward_stored_batches",
            "Batches that could not be sent at once and wait on the disk",
            self.stored.clone(),
        );
        registry.register("forward_dropped_batches", "Batches that the collector never gets", self.dropped.clone());
        registry.register("forward_waiting_batches", "Batches on the disk", self.batches.clone());
        registry.register("forward_waiting_bytes", "Size of these", self.bytes.clone());
    }

    /// The collector has a batch.
    pub(crate) fn sent(&self, kind: &'static str) {
        self.sent.get_or_create(&KindLabels { kind }).inc();
    }

    /// A batch waits on the disk.
    pub(crate) fn stored(&self, kind: &'static str) {
        self.stored.get_or_create(&KindLabels { kind }).inc();
    }

    /// Batches are lost: `busy` (too many at once), `undelivered` (nothing is kept), `refused`, `full`, `expired`, `corrupt`, `unwritten`.
    pub(crate) fn dropped(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.dropped.get_or_create(&ReasonLabels { reason }).inc_by(count);
        }
    }

    /// What is on the disk now.
    pub(crate) fn waiting(&self, batches: usize, bytes: u64) {
        self.batches.set(i64::try_from(batches).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Of the audit log.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditMetrics {
    pub(crate) records: Counter,
    pub(crate) failures: Counter,
    pub(crate) lost: Counter,
    pub(crate) failing: Gauge,
    pub(crate) sequence: Gauge,
}

impl AuditMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("audit_records", "Records of requests and events in the audit log", self.records.clone());
        registry.register("audit_failures", "Attempts to write the audit log that failed", self.failures.clone());
        registry.register("audit_lost_records", "Records that could not be kept", self.lost.clone());
        registry.register("audit_failing", "1 while the audit log cannot be written", self.failing.clone());
        registry.register("audit_sequence", "Length of the audit log's chain", self.sequence.clone());
    }
}

impl Metrics {
    /// For a server of these models.
    pub(crate) fn new(models: &[&str]) -> Self {
        let counts = || exponential_buckets(1.0, 2.0, 10);
        let metrics = Self {
            registry: Registry::with_prefix("edgelm"),
            aliases: Registry::default(),
            llama: Llama::default(),
            ended: Requests::default(),
            requests: Family::default(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            queue_time: Histogram::new(TIME_TO_FIRST_TOKEN_BUCKETS),
            time_to_first_token: Histogram::new(TIME_TO_FIRST_TOKEN_BUCKETS),
            inter_token: Histogram::new(INTER_TOKEN_BUCKETS),
            duration: Histogram::new(DURATION_BUCKETS),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            preemptions: Counter::default(),
            cancelled: Counter::default(),
            late: Counter::default(),
            engine_panics: Counter::default(),
            stalls: Counter::default(),
            engine_restarts: Counter::default(),
            ready: Gauge::default(),
            door: DoorMetrics::default(),
            finished: Family::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            guesses_made: Counter::default(),
            guesses_right: Counter::default(),
            pass_sequences: Histogram::new(counts()),
            pass_tokens: Histogram::new(counts()),
            pass_time: Histogram::new(INTER_TOKEN_BUCKETS),
            kv_usage: Gauge::default(),
            kv_used_bytes: Gauge::default(),
            kv_kept_bytes: Gauge::default(),
            kv_budget_bytes: Gauge::default(),
            store: StoreMetrics::default(),
            models_loaded: Family::default(),
            model_loads: Family::default(),
            model_load_failures: Family::default(),
            model_fallbacks: Family::default(),
            circuits: Family::default(),
            audit: AuditMetrics::default(),
            health: HealthMetrics::default(),
            forward: ForwardMetrics::default(),
        };
        metrics.ready.set(1);
        metrics.registered().with_aliases(&models.join(","))
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        self.door.register(registry);
        registry.register("http_requests", "Answers by route and status", self.requests.clone());

        // vLLM's.
        self.ended.register(str::to_owned, registry);
        registry.register("num_requests_waiting", "Requests that wait for the engine", self.waiting.clone());
        registry.register("num_requests_running", "Requests the engine works on", self.running.clone());
        registry.register(
            "request_queue_time_seconds",
            "From a request's arrival to when the engine begins with it",
            self.queue_time.clone(),
        );
        registry.register(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting included",
            self.time_to_first_token.clone(),
        );
        registry.register(
            "inter_token_latency_seconds",
            "Between one token of a generation and the next",
            self.inter_token.clone(),
        );
        registry.register(
            "e2e_request_latency_seconds",
            "From a request's arrival to the end of its generation, waiting included",
            self.duration.clone(),
        );
        registry.register("prompt_tokens", "Prompt tokens of requests that have begun", self.prompt_tokens.clone());
        registry.register("generation_tokens", "Tokens generated", self.generated_tokens.clone());
        registry.register("request_success", "Requests done, by why their last choice ended", self.finished.clone());
        registry.register("num_preemptions", "Generations that had to make room for others", self.preemptions.clone());
        registry.register(
            "iteration_tokens",
            "Rows of a pass: tokens of prompts and generations",
            self.pass_tokens.clone(),
        );
        registry.register("kv_cache_usage_perc", "KV budget in use, from 0 to 1", self.kv_usage.clone());
        registry.register(
            "prefix_cache_queries",
            "Prompt tokens looked for among kept ones",
            self.prefix_queries.clone(),
        );
        registry.register("prefix_cache_hits", "Prompt tokens found there", self.prefix_hits.clone());
        registry.register(
            "spec_decode_num_draft_tokens",
            "Tokens that were guessed and checked",
            self.guesses_made.clone(),
        );
        registry.register("spec_decode_num_accepted_tokens", "Guesses that were right", self.guesses_right.clone());

        // Ours.
        registry.register(
            "pass_sequences",
            "Generations that shared a pass over the weights",
            self.pass_sequences.clone(),
        );
        registry.register("pass_seconds", "Time of a pass", self.pass_time.clone());
        registry.register(
            "kv_used_bytes",
            "Keys, values and states of running and kept sequences",
            self.kv_used_bytes.clone(),
        );
        registry.register(
            "kv_kept_bytes",
            "The part that is kept for prompts that begin the same",
            self.kv_kept_bytes.clone(),
        );
        registry.register(
            "kv_budget_bytes",
            "Limit of kv_used_bytes; 0 where there is none",
            self.kv_budget_bytes.clone(),
        );
        registry.register("kv_store_bytes", "Size of what is in the files of --kv-store", self.store.bytes.clone());
        registry.register("kv_store_writes", "Pages written to --kv-store", self.store.writes.clone());
        registry.register(
            "kv_store_written_bytes",
            "Bytes written to --kv-store: what its disk wears by",
            self.store.written_bytes.clone(),
        );
        registry.register("kv_store_reads", "Pages that came back from --kv-store", self.store.reads.clone());
        registry.register(
            "kv_store_write_failures",
            "Pages that could not be written to --kv-store",
            self.store.write_failures.clone(),
        );
        registry.register(
            "kv_store_bad_reads",
            "Pages that came back from --kv-store changed, or not at all, and were not used",
            self.store.bad_reads.clone(),
        );
        registry.register(
            "cancelled_requests",
            "Requests whose client went away before the end",
            self.cancelled.clone(),
        );
        registry.register("late_requests", "Requests that did not end in the time they had", self.late.clone());
        registry.register("engine_panics", "Requests that crashed the engine", self.engine_panics.clone());
        registry.register("engine_stalls", "Passes that took longer than the limit", self.stalls.clone());
        registry.register(
            "engine_restarts",
            "Engine threads that took the place of one that hung or panicked",
            self.engine_restarts.clone(),
        );
        self.audit.register(registry);
        self.health.register(registry);
        self.forward.register(registry);
        registry.register_collector(Box::new(Machine::new(Path::new("/"), self.generated_tokens.clone())));
        registry.register("engine_ready", "1, or 0 while a pass hangs", self.ready.clone());
        registry.register("model_loaded", "1 while a model is loaded", self.models_loaded.clone());
        registry.register("model_loads", "Times that a model was loaded", self.model_loads.clone());
        registry.register(
            "circuit_breaker",
            "State of a model's circuit breaker: 0 closed, 1 half open, 2 open",
            self.circuits.clone(),
        );
        registry.register(
            "model_load_failures",
            "Artifacts of a model that could not be loaded",
            self.model_load_failures.clone(),
        );
        registry.register(
            "model_fallbacks",
            "Loads of a lesser artifact and requests that another model answered",
            self.model_fallbacks.clone(),
        );
        self
    }

    /// The names of `llama-server`, and those of vLLM, whose dashboards choose by `model_name`: all models together, as we count.
    fn with_aliases(mut self, models: &str) -> Self {
        self.llama.register(
            &Shared {
                generated_tokens: &self.generated_tokens,
                cached_tokens: &self.prefix_hits,
                running: &self.running,
                waiting: &self.waiting,
                kv_usage: &self.kv_usage,
                guesses_made: &self.guesses_made,
                guesses_right: &self.guesses_right,
            },
            &mut self.aliases,
        );
        let name = |own: &str| format!("vllm:{own}");
        let labels =
            [("model_name", models), ("engine", "0")].map(|(name, value)| (name.into(), value.to_owned().into()));
        let vllm = self.aliases.sub_registry_with_labels(labels.into_iter());
        self.ended.register(name, vllm);
        for (own, help, gauge) in [
            ("num_requests_running", "Requests the engine works on", &self.running),
            ("num_requests_waiting", "Requests that wait for the engine", &self.waiting),
        ] {
            vllm.register(name(own), help, gauge.clone());
        }
        vllm.register(name("kv_cache_usage_perc"), "KV budget in use, from 0 to 1", self.kv_usage.clone());
        for (own, help, counter) in [
            ("prompt_tokens", "Prompt tokens of requests that have begun", &self.prompt_tokens),
            ("generation_tokens", "Tokens generated", &self.generated_tokens),
            ("num_preemptions", "Generations that had to make room for others", &self.preemptions),
            ("prefix_cache_queries", "Prompt tokens looked for among kept ones", &self.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found there", &self.prefix_hits),
            ("spec_decode_num_draft_tokens", "Tokens that were guessed and checked", &self.guesses_made),
            ("spec_decode_num_accepted_tokens", "Guesses that were right", &self.guesses_right),
        ] {
            vllm.register(name(own), help, counter.clone());
        }
        vllm.register(name("request_success"), "Requests done, by why their last choice ended", self.finished.clone());
        for (own, help, histogram) in [
            ("time_to_first_token_seconds", "From arrival to the first token", &self.time_to_first_token),
            ("inter_token_latency_seconds", "Between one token of a generation and the next", &self.inter_token),
            ("e2e_request_latency_seconds", "From arrival to the end", &self.duration),
            ("request_queue_time_seconds", "From arrival to when the engine begins", &self.queue_time),
            ("iteration_tokens_total", "Rows of a pass: tokens of prompts and generations", &self.pass_tokens),
        ] {
            vllm.register(name(own), help, histogram.clone());
        }
        self
    }

    /// A request's prompt is done: so much of it was computed, in this time.
    pub(crate) fn prompt_done(&self, prompt_tokens: usize, cached_tokens: usize, took: Duration) {
        self.prefix_queries.inc_by(u64::try_from(prompt_tokens).unwrap_or(u64::MAX));
        self.prefix_hits.inc_by(u64::try_from(cached_tokens).unwrap_or(u64::MAX));
        self.llama.prompt(prompt_tokens.saturating_sub(cached_tokens), took);
    }

    /// The engine is done with a request that had its prompt behind it.
    pub(crate) fn request_ended(&self, ended: &Ended) {
        self.ended.observe(ended);
        self.llama.ended(ended);
    }

    /// A pass over the weights, with so many generations and rows.
    pub(crate) fn pass(&self, sequences: usize, rows: usize, took: Duration) {
        self.pass_sequences.observe(sequences as f64);
        self.pass_tokens.observe(rows as f64);
        self.pass_time.observe(seconds(took));
        self.llama.pass(sequences);
    }

    /// Memory for keys and values of one model.
    pub(crate) fn memory(&self, parts: &Parts, memory: &KvMemory) {
        let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        parts.used.set(&self.kv_used_bytes, bytes(memory.used_bytes));
        parts.kept.set(&self.kv_kept_bytes, bytes(memory.kept_bytes));
        parts.budget.set(&self.kv_budget_bytes, bytes(memory.budget_bytes.unwrap_or(0)));
        let (used, budget) = (self.kv_used_bytes.get(), self.kv_budget_bytes.get());
        self.kv_usage.set(if budget > 0 { used as f64 / budget as f64 } else { 0.0 });
        let (store, now) = (&self.store, &memory.store);
        parts.stored.set(&store.bytes, i64::try_from(now.bytes).unwrap_or(i64::MAX));
        parts.store_writes.count(&store.writes, now.written);
        parts.store_written_bytes.count(&store.written_bytes, now.written_bytes);
        parts.store_reads.count(&store.reads, now.read);
        parts.store_write_failures.count(&store.write_failures, now.failed_writes);
        parts.store_bad_reads.count(&store.bad_reads, now.bad_reads);
    }

    /// A worker ends: nothing of it is left in the gauges.
    pub(crate) fn withdraw(&self, parts: &Parts) {
        parts.waiting.set(&self.waiting, 0);
        parts.running.set(&self.running, 0);
        self.memory(parts, &KvMemory::default());
    }

    /// A model comes or goes.
    pub(crate) fn loaded(&self, model: &str, is_loaded: bool) {
        let labels = ModelLabels { model_name: model.to_owned() };
        self.models_loaded.get_or_create(&labels).set(i64::from(is_loaded));
        // There from the start: the first failure is an increase only over a zero that was seen.
        drop(self.model_load_failures.get_or_create(&labels));
        if is_loaded {
            self.model_loads.get_or_create(&labels).inc();
        }
    }

    /// The state of a model's circuit breaker.
    pub(crate) fn circuit(&self, model: &str, circuit: Circuit) {
        let value = match circuit {
            Circuit::Closed => 0,
            Circuit::HalfOpen => 1,
            Circuit::Open => 2,
        };
        self.circuits.get_or_create(&ModelLabels { model_name: model.to_owned() }).set(value);
    }

    /// An artifact of a model could not be loaded.
    pub(crate) fn load_failed(&self, model: &str) {
        self.model_load_failures.get_or_create(&ModelLabels { model_name: model.to_owned() }).inc();
    }

    /// Something else is used in place of a model, or of its artifact.
    pub(crate) fn fell_back(&self, model: &str, by: &str) {
        self.model_fallbacks.get_or_create(&FallbackLabels { model_name: model.to_owned(), by: by.to_owned() }).inc();
    }

    /// A generation is over: how its guesses have fared.
    pub(crate) fn guesses(&self, guesses: Guesses) {
        self.guesses_made.inc_by(u64::try_from(guesses.made).unwrap_or(u64::MAX));
        self.guesses_right.inc_by(u64::try_from(guesses.right).unwrap_or(u64::MAX));
    }

    /// A request is done.
    pub(crate) fn finished(&self, reason: StopReason) {
        self.finished.get_or_create(&FinishLabels { finished_reason: reason.name() }).inc();
    }

    /// The same under our own names alone.
    pub(crate) fn render_own(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The text a scraper reads.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        self.llama.refresh(self.generated_tokens.get());
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &self.aliases)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Seconds, for a histogram.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

// Each spans what a small model on a small machine does: from a server CPU to a long prompt on a board without SIMD.
const TIME_TO_FIRST_TOKEN_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const INTER_TOKEN_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const COUNT_BUCKETS: [f64; 16] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
const DURATION_BUCKETS: [f64; 13] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixed() {
        let metrics = Metrics::new(&["a", "b"]);
        metrics
            .requests
            .get_or_create(&RequestLabels { method: "GET", route: "/health".to_owned(), status: 200 })
            .inc();
        metrics.time_to_first_token.observe(0.2);
        let text = metrics.render().expect("text");
        assert!(text.contains("edgelm_http_requests_total{method=\"GET\",route=\"/health\",status=\"200\"} 1"));
        assert!(text.contains("edgelm_time_to_first_token_seconds_bucket{le=\"0.25\"} 1"));
        assert!(text.contains("edgelm_generation_tokens_total 0"));
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }

    /// A name may be declared once, or scrapers refuse all of it.
    #[test]
    fn names_of_others_stand_beside_ours() {
        let metrics = Metrics::new(&["a", "b"]);
        metrics.prompt_done(30, 10, Duration::from_secs(2));
        metrics.generated_tokens.inc_by(8);
        metrics.pass(3, 30, Duration::from_millis(10));
        metrics.pass(2, 2, Duration::from_millis(10));
        let (prefill, decode) = (Duration::from_secs(2), Duration::from_secs(4));
        metrics.request_ended(&Ended {
            prompt_tokens: 30,
            generated_tokens: 8,
            choices: 2,
            max_tokens: Some(4),
            prefill,
            decode,
        });
        let text = metrics.render().expect("text");
        for line in [
            "llamacpp:prompt_tokens_total 20",
            "llamacpp:prompt_seconds_total 2.0",
            "llamacpp:prompt_tokens_seconds 10.0",
            "llamacpp:tokens_predicted_total 8",
            "llamacpp:tokens_predicted_seconds_total 4.0",
            "llamacpp:predicted_tokens_seconds 2.0",
            "llamacpp:n_decode_total 2",
            "llamacpp:n_busy_slots_per_decode 2.5",
            "llamacpp:n_tokens_max 34",
            "llamacpp:requests_processing 0",
            "llamacpp:requests_deferred 0",
            "llamacpp:kv_cache_usage_ratio 0.0",
            "vllm:generation_tokens_total{model_name=\"a,b\",engine=\"0\"} 8",
            "vllm:num_requests_running{model_name=\"a,b\",engine=\"0\"} 0",
            "vllm:request_prefill_time_seconds_sum{model_name=\"a,b\",engine=\"0\"} 2.0",
            "vllm:request_time_per_output_token_seconds_count{model_name=\"a,b\",engine=\"0\"} 1",
            "edgelm_request_generation_tokens_sum 8.0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        let mut declared: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let all = declared.len();
        declared.sort_unstable();
        declared.dedup();
        assert_eq!(declared.len(), all);
    }
}
