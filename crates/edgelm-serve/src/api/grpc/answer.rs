//! Answers as messages.

use super::status;
use crate::{
    answer::{Answers, Item, Reason, Usage, Whole},
    error::ApiError,
    proto::v1::{self, chunk::Event},
    tools::Call,
    worker::TokenLogprob,
};
use futures::stream::{self, Stream};
use std::pin::Pin;
use tonic::Status;

/// Pieces on their way. Dropping it cancels the request.
pub(super) type Chunks = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

/// Everything at once.
pub(super) async fn whole(model: String, answers: Answers) -> Result<v1::Answer, ApiError> {
    let (choices, usage) = answers.whole().await?;
    let choices = choices.into_iter().zip(0..).map(|(whole, index)| choice(index, whole)).collect();
    Ok(v1::Answer { model, choices, usage: Some(counts(&usage)) })
}

/// Piece by piece.
pub(super) fn chunks(answers: Answers) -> Chunks {
    Box::pin(stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        match answers.next().await {
            Ok(Some((choice, item))) => Some((Ok(chunk(choice, item)), Some(answers))),
            Ok(None) => {
                let event = Some(Event::Usage(counts(&answers.usage)));
                Some((Ok(v1::Chunk { index: 0, event }), None))
            }
            Err(error) => Some((Err(status(&error)), None)),
        }
    }))
}

fn chunk(choice: usize, item: Item) -> v1::Chunk {
    let event = match item {
        Item::Text(text, tokens) => Event::Piece(v1::Piece { text, logprobs: tokens.into_iter().map(token).collect() }),
        Item::Call(made) => Event::ToolCall(call(made)),
        Item::End(end) => Event::FinishReason(reason(&end.reason).into()),
    };
    v1::Chunk { index: u32::try_from(choice).unwrap_or(u32::MAX), event: Some(event) }
}

fn choice(index: u32, whole: Whole) -> v1::Choice {
    v1::Choice {
        index,
        text: whole.text,
        tool_calls: whole.calls.into_iter().map(call).collect(),
        finish_reason: reason(&whole.end.reason).into(),
        logprobs: whole.logprobs.into_iter().map(token).collect(),
    }
}

fn reason(reason: &Reason) -> v1::FinishReason {
    match reason {
        Reason::Stop | Reason::StopText(_) => v1::FinishReason::Stop,
        Reason::Length => v1::FinishReason::Length,
        Reason::Calls => v1::FinishReason::ToolCalls,
    }
}

fn call(call: Call) -> v1::ToolCall {
    let arguments = call.arguments_text();
    v1::ToolCall { id: call.id, name: call.name, arguments }
}

fn token(token: TokenLogprob) -> v1::TokenLogprob {
    let alternative = |(token, logprob)| v1::Alternative { token, logprob };
    let top_logprobs = token.top.into_iter().map(alternative).collect();
    v1::TokenLogprob { token: token.token, logprob: token.logprob, top_logprobs }
}

fn counts(usage: &Usage) -> v1::Usage {
    let count = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
    v1::Usage {
        prompt_tokens: count(usage.prompt_tokens),
        completion_tokens: count(usage.completion_tokens),
        cached_tokens: count(usage.cached_tokens),
        dropped_tokens: count(usage.dropped_tokens),
    }
}
