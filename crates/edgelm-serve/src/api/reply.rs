//! Answers: the envelope both endpoints share, and whole (not streamed) replies.

use crate::{
    error::ApiError,
    service::{Run, random, unix_now},
    sse::stream_reply,
    worker::{Event, StopReason, TokenLogprob},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::parameters::Streaming;

/// How an endpoint writes its choices.
pub(crate) trait Reply: Send + 'static {
    /// Begins the answer's id.
    const ID_PREFIX: &'static str;
    /// `object` of a whole answer.
    const OBJECT: &'static str;
    /// `object` of a streamed piece.
    const CHUNK_OBJECT: &'static str;

    /// A whole choice.
    fn choice(&self, index: usize, text: &str, logprobs: &[TokenLogprob], reason: StopReason) -> Value;
    /// What a streamed choice begins with, if anything.
    fn opening(&mut self, index: usize) -> Option<Value>;
    /// One piece of a streamed choice.
    fn delta(&mut self, index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value;
    /// What a streamed choice ends with.
    fn closing(&self, index: usize, reason: StopReason) -> Value;
}

/// The fields around the choices; the same in every chunk of a stream.
pub(crate) struct Envelope {
    id: String,
    created: u64,
    model: String,
}

impl Envelope {
    fn new<R: Reply>(model: &str) -> Self {
        let id = format!("{}-{:016x}{:016x}", R::ID_PREFIX, random(), random());
        Self { id, created: unix_now(), model: model.to_owned() }
    }

    /// One JSON answer. `usage` is left out where it is `None`.
    pub(crate) fn wrap(&self, object: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut answer = json!({
            "id": self.id,
            "object": object,
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

/// Token counts of a request, all choices together; the prompt counts once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    /// Those of the prompt that were not computed but kept from earlier requests.
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Usage {
    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// Answers a run as the client wants it.
pub(super) async fn answer<R: Reply>(
    run: Run,
    model: &str,
    reply: R,
    streaming: Option<Streaming>,
) -> Result<Response, ApiError> {
    let envelope = Envelope::new::<R>(model);
    match streaming {
        Some(Streaming { include_usage }) => Ok(stream_reply(run, envelope, reply, include_usage)),
        None => whole(run, &envelope, &reply).await,
    }
}

async fn whole<R: Reply>(mut run: Run, envelope: &Envelope, reply: &R) -> Result<Response, ApiError> {
    let mut usage = Usage { prompt_tokens: run.prompt_tokens, cached_tokens: 0, completion_tokens: 0 };
    let mut choices = Vec::with_capacity(run.choices);
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    while choices.len() < run.choices {
        match run.next().await {
            Event::Piece { text: more, logprob } => {
                text.push_str(&more);
                logprobs.extend(logprob);
            }
            Event::Finished { reason, generated_tokens } => {
                usage.completion_tokens += generated_tokens;
                usage.cached_tokens = run.cached_tokens();
                choices.push(reply.choice(choices.len(), &text, &logprobs, reason));
                text.clear();
                logprobs.clear();
            }
            Event::Failed(error) => return Err(error),
        }
    }
    Ok(Json(envelope.wrap(R::OBJECT, choices, Some(usage.to_json()))).into_response())
}

/// OpenAI's words.
pub(super) fn finish_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Stop => "stop",
        StopReason::Length => "length",
    }
}

/// JSON has no infinity: OpenAI writes -9999 for "impossible".
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
