//! What OpenAI's generating endpoints share in their answers.

use crate::{
    answer::{Reason, Usage},
    service::{random, unix_now},
};
use serde_json::{Value, json};

/// The fields around the choices; the same in every chunk of a stream.
pub(super) struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Envelope {
    pub(super) fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        Self { id: new_id(prefix), object, created: unix_now(), model: model.to_owned() }
    }

    /// One JSON answer. `usage` is left out where it is `None`.
    pub(super) fn wrap(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut answer = json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("edgelm-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        });
        if let Some(usage) = usage {
            answer["usage"] = usage;
        }
        answer
    }
}

/// `prefix-` and 128 unpredictable bits.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:016x}", random(), random())
}

/// Token counts, all choices together; the prompt counts once.
pub(super) fn usage_json(usage: &Usage) -> Value {
    let mut counts = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    });
    if usage.dropped_tokens > 0 {
        counts["prompt_tokens_details"]["dropped_tokens"] = usage.dropped_tokens.into();
    }
    counts
}

/// OpenAI's words.
pub(super) fn finish_reason(reason: &Reason) -> &'static str {
    match reason {
        Reason::Stop | Reason::StopText(_) => "stop",
        Reason::Length => "length",
        Reason::Calls => "tool_calls",
    }
}

/// JSON has no infinity: OpenAI writes -9999 for "impossible".
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// A token with its log-probability. `bytes` is null for a token that is not whole characters.
pub(super) fn token_json(token: &str, logprob: f32) -> Value {
    let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then_some(token.as_bytes());
    json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
}

/// Tokens with their alternatives.
pub(super) fn tokens_json(tokens: &[crate::worker::TokenLogprob]) -> Vec<Value> {
    tokens
        .iter()
        .map(|token| {
            let mut entry = token_json(&token.token, token.logprob);
            entry["top_logprobs"] = token.top.iter().map(|(token, logprob)| token_json(token, *logprob)).collect();
            entry
        })
        .collect()
}
