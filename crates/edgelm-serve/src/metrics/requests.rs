//! What is known of a request when it has ended, in the words of vLLM: sizes and times of its phases.

use super::{COUNT_BUCKETS, DURATION_BUCKETS, INTER_TOKEN_BUCKETS, seconds};
use prometheus_client::{metrics::histogram::Histogram, registry::Registry};
use std::time::Duration;

/// A request that the engine is done with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) prompt_tokens: usize,
    /// Of all choices.
    pub(crate) generated_tokens: usize,
    pub(crate) choices: usize,
    /// What each choice may generate at most.
    pub(crate) max_tokens: Option<usize>,
    /// From when the engine began to the first token.
    pub(crate) prefill: Duration,
    /// From there to the last.
    pub(crate) decode: Duration,
}

/// Histograms over requests.
pub(super) struct Requests {
    prompt_tokens: Histogram,
    generated_tokens: Histogram,
    max_tokens: Histogram,
    choices: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    per_token: Histogram,
}

impl Default for Requests {
    fn default() -> Self {
        let (counts, times) = (|| Histogram::new(COUNT_BUCKETS), || Histogram::new(DURATION_BUCKETS));
        Self {
            prompt_tokens: counts(),
            generated_tokens: counts(),
            max_tokens: counts(),
            choices: counts(),
            prefill: times(),
            decode: times(),
            inference: times(),
            per_token: Histogram::new(INTER_TOKEN_BUCKETS),
        }
    }
}

impl Requests {
    pub(super) fn observe(&self, ended: &Ended) {
        self.prompt_tokens.observe(ended.prompt_tokens as f64);
        self.generated_tokens.observe(ended.generated_tokens as f64);
        self.choices.observe(ended.choices as f64);
        if let Some(max_tokens) = ended.max_tokens {
            self.max_tokens.observe(max_tokens as f64);
        }
        self.prefill.observe(seconds(ended.prefill));
        self.decode.observe(seconds(ended.decode));
        self.inference.observe(seconds(ended.prefill + ended.decode));
        // As vLLM has it: not for answers of one token, and per choice.
        let following = ended.generated_tokens.saturating_sub(ended.choices);
        if following > 0 {
            self.per_token.observe(seconds(ended.decode) * ended.choices as f64 / following as f64);
        }
    }

    /// Into a registry whose prefix is ours or vLLM's.
    pub(super) fn register(&self, name: impl Fn(&str) -> String, registry: &mut Registry) {
        for (own, help, histogram) in [
            ("request_prompt_tokens", "Tokens of a request's prompt", &self.prompt_tokens),
            ("request_generation_tokens", "Tokens generated for a request", &self.generated_tokens),
            ("request_params_max_tokens", "Tokens that a choice of a request may have", &self.max_tokens),
            ("request_params_n", "Choices of a request", &self.choices),
            ("request_prefill_time_seconds", "From when the engine begins to the first token", &self.prefill),
            ("request_decode_time_seconds", "From a request's first token to its end", &self.decode),
            ("request_inference_time_seconds", "From when the engine begins to a request's end", &self.inference),
            ("request_time_per_output_token_seconds", "Of a request, by its tokens behind the first", &self.per_token),
        ] {
            registry.register(name(own), help, histogram.clone());
        }
    }
}
