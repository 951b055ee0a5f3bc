//! The names that `llama-server` gives its metrics, for dashboards and autoscalers that know those.
//!
//! A counter of prompt tokens is of those that were computed there, not of those that were kept. Averages are over the life of the
//! server; for the last minutes take `rate()` of the counters.

use super::{Ended, seconds};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::Duration,
};

type Seconds = Counter<f64, AtomicU64>;
type Ratio = Gauge<f64, AtomicU64>;

/// What is counted for these names alone.
#[derive(Default)]
pub(super) struct Llama {
    prompt_tokens: Counter,
    prompt_time: Seconds,
    predicted_time: Seconds,
    prompt_speed: Ratio,
    predicted_speed: Ratio,
    passes: Counter,
    sequences: Counter,
    busy: Ratio,
    longest: Gauge<i64, AtomicI64>,
}

/// What is counted anyway.
pub(super) struct Shared<'a> {
    pub(super) generated_tokens: &'a Counter,
    pub(super) cached_tokens: &'a Counter,
    pub(super) running: &'a Gauge,
    pub(super) waiting: &'a Gauge,
    pub(super) kv_usage: &'a Ratio,
    pub(super) guesses_made: &'a Counter,
    pub(super) guesses_right: &'a Counter,
}

impl Llama {
    pub(super) fn pass(&self, sequences: usize) {
        self.passes.inc();
        self.sequences.inc_by(u64::try_from(sequences).unwrap_or(u64::MAX));
    }

    pub(super) fn prompt(&self, computed_tokens: usize, took: Duration) {
        self.prompt_tokens.inc_by(u64::try_from(computed_tokens).unwrap_or(u64::MAX));
        self.prompt_time.inc_by(seconds(took));
    }

    pub(super) fn ended(&self, ended: &Ended) {
        self.predicted_time.inc_by(seconds(ended.decode));
        let tokens = ended.prompt_tokens + ended.generated_tokens / ended.choices.max(1);
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        if tokens > self.longest.get() {
            self.longest.set(tokens);
        }
    }

    /// Brings averages up to date.
    pub(super) fn refresh(&self, generated_tokens: u64) {
        let ratio = |over: u64, under: f64| if under > 0.0 { over as f64 / under } else { 0.0 };
        self.prompt_speed.set(ratio(self.prompt_tokens.get(), self.prompt_time.get()));
        self.predicted_speed.set(ratio(generated_tokens, self.predicted_time.get()));
        self.busy.set(ratio(self.sequences.get(), self.passes.get() as f64));
    }

    pub(super) fn register(&self, shared: &Shared<'_>, registry: &mut Registry) {
        let name = |own: &str| format!("llamacpp:{own}");
        for (own, help, counter) in [
            ("prompt_tokens", "Prompt tokens computed", &self.prompt_tokens),
            ("prompt_tokens_cached", "Prompt tokens that were kept from earlier requests", shared.cached_tokens),
            ("tokens_predicted", "Tokens generated", shared.generated_tokens),
            ("n_decode", "Passes over the weights", &self.passes),
            ("spec_decode_num_draft_tokens", "Tokens that were guessed and checked", shared.guesses_made),
            ("spec_decode_num_accepted_tokens", "Guesses that were right", shared.guesses_right),
        ] {
            registry.register(name(own), help, counter.clone());
        }
        registry.register(name("prompt_seconds"), "Time of requests in their prompts", self.prompt_time.clone());
        registry.register(name("tokens_predicted_seconds"), "Time of requests in answers", self.predicted_time.clone());
        for (own, help, gauge) in [
            ("prompt_tokens_seconds", "Prompt tokens computed per second of requests' time", &self.prompt_speed),
            ("predicted_tokens_seconds", "Tokens generated per second of requests' time", &self.predicted_speed),
            ("n_busy_slots_per_decode", "Generations that shared a pass, on average", &self.busy),
            ("kv_cache_usage_ratio", "KV budget in use, from 0 to 1", shared.kv_usage),
        ] {
            registry.register(name(own), help, gauge.clone());
        }
        for (own, help, gauge) in [
            ("requests_processing", "Requests the engine works on", shared.running),
            ("requests_deferred", "Requests that wait for the engine", shared.waiting),
            ("n_tokens_max", "Tokens of the longest request so far", &self.longest),
        ] {
            registry.register(name(own), help, gauge.clone());
        }
    }
}
