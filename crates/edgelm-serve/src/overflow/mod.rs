//! Prompts that are longer than the context: refused, or made shorter in a way that the client chose and is told of.
//!
//! A conversation loses whole turns, the oldest first, and keeps what it began with (system messages) and its last turn: half
//! a turn would be no conversation, and templates refuse answers without a question. A plain prompt loses its oldest tokens.
//! With `summarize`, the model first writes down what is lost, and that goes in front of what stays.

mod summary;
mod turns;

pub(crate) use summary::Summaries;

use crate::{
    api::{Conversation, Parameters, Prompt},
    backend::Backend,
    error::ApiError,
    models::Lease,
    notes,
    service::{MaxTokens, Start},
};
use axum::http::HeaderName;
use edgelm_engine::EngineError;
use std::sync::Arc;
use turns::Turns;

/// What is done with a prompt that leaves no room for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// It is an error.
    #[default]
    Refuse,
    /// The oldest turns, or tokens, are left out.
    Slide,
    /// The oldest turns are left out, and a summary of them by the model is put in their place.
    Summarize,
}

impl Overflow {
    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "refuse" => Some(Self::Refuse),
            "slide" => Some(Self::Slide),
            "summarize" => Some(Self::Summarize),
            _ => None,
        }
    }
}

/// What a prompt is made of.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Chat(Box<Conversation>),
    Plain(Prompt),
}

impl Source {
    pub(crate) fn chat(conversation: Conversation) -> Self {
        Self::Chat(Box::new(conversation))
    }

    fn tokens(&self, backend: &dyn Backend) -> Result<Vec<u32>, EngineError> {
        match self {
            Self::Chat(conversation) => Conversation::clone(conversation).prompt(backend),
            Self::Plain(prompt) => prompt.tokens(backend),
        }
    }
}

/// What was left out of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) turns: usize,
    /// Of the prompt as it would have been.
    pub(crate) tokens: usize,
    /// Generated for the summary.
    pub(crate) summary_tokens: usize,
}

const DROPPED: HeaderName = HeaderName::from_static("x-edgelm-context-dropped");

impl Dropped {
    fn tell(&self) {
        if *self != Self::default() {
            let Self { turns, tokens, summary_tokens } = self;
            notes::say(DROPPED, &format!("turns={turns} tokens={tokens} summary_tokens={summary_tokens}"));
        }
    }
}

/// For the answer, where no length was asked for: a quarter of the context, 512 tokens at most.
fn reserve(wanted: MaxTokens, room: usize) -> usize {
    match wanted {
        MaxTokens::Asked(tokens) => tokens,
        MaxTokens::Default(tokens) => tokens.min((room / 4).min(512)).max(1),
        MaxTokens::Rest => (room / 4).clamp(1, 512),
    }
}

impl Lease {
    /// The prompt's tokens, shortened as the request or the server allows.
    pub(crate) async fn prompt_tokens(
        &self,
        source: Source,
        parameters: &Parameters,
        start: &Start,
    ) -> Result<(Vec<u32>, Dropped), ApiError> {
        let param = start.param;
        let backend = self.backend();
        let room = self.room();
        let overflow = parameters.overflow.unwrap_or(self.overflow());
        let limit = room.saturating_sub(reserve(parameters.max_tokens, room));
        let whole = on_thread(&backend, source.clone(), param, |source, backend| source.tokens(backend)).await?;
        if overflow == Overflow::Refuse || whole.len() <= limit || limit == 0 {
            return Ok((whole, Dropped::default()));
        }
        let (tokens, mut dropped) = match source {
            Source::Plain(_) => (slide_tokens(&whole, limit, &*backend), Dropped::default()),
            Source::Chat(conversation) if overflow == Overflow::Summarize => {
                self.summarized(*conversation, limit, parameters, start).await?
            }
            Source::Chat(conversation) => {
                let turns = Turns::new(*conversation);
                let fit = move |turns: Turns, backend: &dyn Backend| turns.fitting(limit, backend);
                let (_, count, tokens) = on_thread(&backend, turns, param, fit).await?;
                (tokens, Dropped { turns: count, ..Dropped::default() })
            }
        };
        dropped.tokens = whole.len().saturating_sub(tokens.len() - dropped.summary_tokens.min(tokens.len()));
        dropped.tell();
        Ok((tokens, dropped))
    }
}

/// Leaves out tokens behind what every prompt begins with.
fn slide_tokens(whole: &[u32], limit: usize, backend: &dyn Backend) -> Vec<u32> {
    let begin = backend.text_prompt("").unwrap_or_default();
    let kept = if whole.starts_with(&begin) && begin.len() < limit { begin.len() } else { 0 };
    let mut tokens = whole[..kept].to_vec();
    tokens.extend_from_slice(&whole[whole.len() - (limit - kept)..]);
    tokens
}

/// Tokenizing is long: not on the runtime's threads.
async fn on_thread<S: Send + 'static, T: Send + 'static>(
    backend: &Arc<dyn Backend>,
    source: S,
    param: &'static str,
    work: impl FnOnce(S, &dyn Backend) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, ApiError> {
    let backend = Arc::clone(backend);
    let done = tokio::task::spawn_blocking(move || work(source, &*backend)).await.map_err(|_| ApiError::Internal)?;
    done.map_err(|error| ApiError::from_engine(&error, param))
}
