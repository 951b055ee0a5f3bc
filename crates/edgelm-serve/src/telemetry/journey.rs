//! One request from its arrival to the last byte of its answer.

use super::{Telemetry, timeline::Timeline};
use crate::{
    audit::RequestRecord, backend::Backend, encoding::hex, error::ApiError, metrics::seconds, service::random,
    worker::StopReason,
};
use opentelemetry::trace::SpanContext;
use sha2::{Digest, Sha256};
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// Routes that say something about the server and do no work for anybody: they have no audit record.
const ABOUT: [&str; 4] = ["/", "/health", "/metrics", "/openapi.json"];
/// And these, with all below.
const DASHBOARD: &str = "/dashboard";

/// A request. Filled in by whoever learns something about it.
pub(crate) struct Journey {
    telemetry: Arc<Telemetry>,
    /// The client's `x-request-id`, or one of ours.
    pub(crate) id: String,
    pub(crate) method: &'static str,
    /// The pattern, never the path a client sent.
    pub(crate) route: String,
    address: Option<IpAddr>,
    pub(crate) received: Instant,
    pub(crate) arrived: SystemTime,
    /// The client's span.
    pub(crate) parent: Option<SpanContext>,
    steps: Mutex<Steps>,
    timeline: OnceLock<Timeline>,
}

/// What is known so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps {
    pub(crate) client: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) model_digest: Option<String>,
    pub(crate) adapter: Option<String>,
    pub(crate) prompt_sha256: Option<String>,
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) cached_tokens: Option<usize>,
    pub(crate) generated_tokens: usize,
    /// Its prompt is ready for the engine.
    pub(crate) queued: Option<Instant>,
    /// The engine begins with it.
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    /// Nothing more will come from the engine.
    pub(crate) done: Option<Instant>,
    pub(crate) result: Option<&'static str>,
    prompt: Option<String>,
    /// By choice.
    answers: Vec<String>,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// None where the client went away before there was one.
    pub(crate) status: Option<u16>,
    pub(crate) result: &'static str,
    pub(crate) took: Duration,
    pub(crate) steps: Steps,
}

impl Steps {
    /// Its text, where somebody wants it.
    pub(super) fn prompt(&self) -> Option<&str> {
        self.prompt.as_deref()
    }
}

impl Journey {
    pub(crate) fn begin(
        telemetry: Arc<Telemetry>,
        id: Option<String>,
        method: &'static str,
        route: String,
        address: Option<IpAddr>,
        parent: Option<SpanContext>,
    ) -> Arc<Self> {
        let journey = Arc::new(Self {
            telemetry,
            id: id.unwrap_or_else(|| format!("req-{:016x}", random())),
            method,
            route,
            address,
            received: Instant::now(),
            arrived: SystemTime::now(),
            parent,
            steps: Mutex::default(),
            timeline: OnceLock::new(),
        });
        if journey.is_work() {
            journey.telemetry.live.begun(&journey);
        }
        journey
    }

    pub(crate) fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error while requests have to be recorded but cannot be.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        self.telemetry.check()
    }

    /// Whether the request asks for work, not about the server.
    pub(crate) fn is_work(&self) -> bool {
        !ABOUT.contains(&self.route.as_str()) && !self.route.starts_with(DASHBOARD)
    }

    /// From now on, what it spends its time on is recorded.
    pub(crate) fn record_timeline(&self) {
        self.timeline.get_or_init(Timeline::default);
    }

    /// Where to record that, if somebody wants to know.
    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        self.timeline.get()
    }

    /// Who asks, where that is more than an address.
    pub(crate) fn of_client(&self, name: String) {
        self.steps().client = Some(name);
    }

    /// Which model answers.
    pub(crate) fn of_model(&self, id: &str, digest: Option<String>, adapter: Option<String>) {
        let mut steps = self.steps();
        steps.model = Some(id.to_owned());
        steps.model_digest = digest.map(|digest| format!("sha256:{digest}"));
        steps.adapter = adapter;
    }

    /// What it is asked.
    pub(crate) fn of_prompt(&self, backend: &dyn Backend, prompt: &[u32]) {
        let mut hasher = Sha256::new();
        prompt.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        let text = self.telemetry.wants_prompt().then(|| backend.text(prompt).unwrap_or_default());
        let mut steps = self.steps();
        steps.prompt_sha256 = Some(hex(&hasher.finalize()));
        steps.prompt_tokens = Some(prompt.len());
        steps.prompt = text;
        steps.queued.get_or_insert_with(Instant::now);
    }

    /// The engine begins with it.
    pub(crate) fn started(&self) {
        self.steps().started.get_or_insert_with(Instant::now);
    }

    /// The prompt is done; so much of it had been kept.
    pub(crate) fn prompt_done(&self, cached_tokens: usize) {
        let mut steps = self.steps();
        steps.cached_tokens = Some(cached_tokens);
        steps.first_token.get_or_insert_with(Instant::now);
    }

    /// A token, of any choice.
    pub(crate) fn token(&self) {
        self.steps().generated_tokens += 1;
    }

    /// Text of the answer.
    pub(crate) fn text(&self, text: &str) {
        if !self.telemetry.wants_content() {
            return;
        }
        let mut steps = self.steps();
        match steps.answers.last_mut() {
            Some(answer) => answer.push_str(text),
            None => steps.answers.push(text.to_owned()),
        }
    }

    /// A choice is over.
    pub(crate) fn finished(&self, reason: StopReason) {
        let mut steps = self.steps();
        steps.answers.push(String::new());
        steps.done = Some(Instant::now());
        steps.result = Some(reason.name());
    }

    /// It failed in the engine, or before.
    pub(crate) fn failed(&self, error: &ApiError) {
        let mut steps = self.steps();
        steps.done = Some(Instant::now());
        steps.result = Some(error.code());
    }

    /// The last byte is out, or (`is_whole` is false) the client does not want it any more.
    pub(super) fn end(&self, status: Option<u16>, is_whole: bool) {
        let mut steps = self.steps().clone();
        if steps.answers.last().is_some_and(String::is_empty) {
            steps.answers.pop();
        }
        let result = match steps.result {
            Some(result) => result,
            None if is_whole => "ok",
            None => "cancelled",
        };
        self.telemetry.ended(self, &Ended { status, result, took: self.received.elapsed(), steps });
    }

    pub(super) fn client(&self, steps: &Steps) -> String {
        let address = || self.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        steps.client.clone().unwrap_or_else(address)
    }

    /// The access line.
    pub(super) fn log(&self, ended: &Ended) {
        let steps = &ended.steps;
        let since = |from: Option<Instant>, to: Option<Instant>| Some(seconds(to?.saturating_duration_since(from?)));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: ACCESS,
                    id = self.id,
                    client = self.client(steps),
                    method = self.method,
                    route = self.route,
                    status = ended.status,
                    result = ended.result,
                    trace_id = self.parent.as_ref().map(|parent| parent.trace_id().to_string()),
                    model = steps.model,
                    prompt_tokens = steps.prompt_tokens,
                    cached_tokens = steps.cached_tokens,
                    generated_tokens = steps.prompt_tokens.map(|_| steps.generated_tokens),
                    queue_s = since(Some(self.received), steps.started),
                    prefill_s = since(steps.started, steps.first_token),
                    decode_s = since(steps.first_token, steps.done),
                    elapsed_s = seconds(ended.took),
                    "request"
                )
            };
        }
        // Probes and scrapers come every few seconds.
        if self.is_work() { line!(info) } else { line!(debug) }
    }

    /// The audit log's record.
    pub(super) fn record(&self, ended: &Ended) -> RequestRecord {
        let steps = &ended.steps;
        RequestRecord {
            request_id: self.id.clone(),
            client: self.client(steps),
            address: self.address.map(|address| address.to_string()),
            api: self.route.clone(),
            model: steps.model.clone(),
            model_digest: steps.model_digest.clone(),
            adapter: steps.adapter.clone(),
            prompt_sha256: steps.prompt_sha256.clone(),
            prompt_tokens: steps.prompt_tokens,
            generated_tokens: steps.prompt_tokens.map(|_| steps.generated_tokens),
            status: ended.status,
            result: ended.result.to_owned(),
            duration_ms: u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX),
            prompt: steps.prompt.clone().filter(|_| self.telemetry.wants_content()),
            answers: self.telemetry.wants_content().then(|| steps.answers.clone()),
        }
    }
}

const ACCESS: &str = "edgelm_serve::access";
/// A filter of logs that lets access lines through.
pub const ACCESS_LINES: &str = "edgelm_serve::access=info";
