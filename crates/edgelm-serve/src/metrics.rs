//! What is counted and measured, and its text form for Prometheus (OpenMetrics 1.0).

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use std::{fmt, time::Duration};

/// Content type of [`Metrics::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of the request counter. `route` is the pattern, never the path a client sent, so its values are few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) method: &'static str,
    pub(crate) route: String,
    pub(crate) status: u16,
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) queue_depth: Gauge,
    pub(crate) running: Gauge,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) duration: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) engine_panics: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("edgelm"),
            requests: Family::default(),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            time_to_first_token: Histogram::new(TIME_TO_FIRST_TOKEN_BUCKETS),
            inter_token: Histogram::new(INTER_TOKEN_BUCKETS),
            duration: Histogram::new(DURATION_BUCKETS),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            cancelled: Counter::default(),
            engine_panics: Counter::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("http_requests", "Answers by route and status", self.requests.clone());
        registry.register("queue_depth", "Requests that wait for the engine", self.queue_depth.clone());
        registry.register("running_requests", "Requests the engine works on", self.running.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting included",
            self.time_to_first_token.clone(),
        );
        registry.register("inter_token_seconds", "Between one token and the next", self.inter_token.clone());
        registry.register(
            "request_duration_seconds",
            "From a request's arrival to the end of its generation, waiting included",
            self.duration.clone(),
        );
        registry.register("prompt_tokens", "Prompt tokens processed", self.prompt_tokens.clone());
        registry.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        registry.register(
            "cancelled_requests",
            "Requests whose client went away before the end",
            self.cancelled.clone(),
        );
        registry.register("engine_panics", "Requests that crashed the engine", self.engine_panics.clone());
        self
    }

    /// The text a scraper reads.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
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
const DURATION_BUCKETS: [f64; 13] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixed() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&RequestLabels { method: "GET", route: "/health".to_owned(), status: 200 })
            .inc();
        metrics.time_to_first_token.observe(0.2);
        let text = metrics.render().expect("text");
        assert!(text.contains("edgelm_http_requests_total{method=\"GET\",route=\"/health\",status=\"200\"} 1"));
        assert!(text.contains("edgelm_time_to_first_token_seconds_bucket{le=\"0.25\"} 1"));
        assert!(text.contains("edgelm_generated_tokens_total 0"));
        assert!(text.ends_with("# EOF\n"));
    }
}
