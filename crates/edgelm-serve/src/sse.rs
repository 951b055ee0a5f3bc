//! A running request as a stream of server-sent events, ended by `data: [DONE]`.
//!
//! Headers go out at once, so clients and proxies do not time out while a request waits; comments keep the connection
//! alive meanwhile. What fails later is an event of its own, after which the stream ends without `[DONE]`.

use crate::{
    api::{Envelope, Reply, Usage},
    service::Run,
    worker::Event,
};
use axum::response::{
    IntoResponse, Response,
    sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures::stream;
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible, time::Duration};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The response. The run is cancelled when the client drops it.
pub(crate) fn stream_reply<R: Reply>(run: Run, envelope: Envelope, reply: R, include_usage: bool) -> Response {
    let usage = Usage { prompt_tokens: run.prompt_tokens, cached_tokens: 0, completion_tokens: 0 };
    let state = Streaming {
        run: Some(run),
        envelope,
        reply,
        include_usage,
        usage,
        choice: 0,
        opened: false,
        ready: VecDeque::new(),
    };
    let events = stream::unfold(state, |mut state| async move {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(SseEvent::default().data(data)), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Streaming<R> {
    /// `None` once the last event has been read, which gives the slot back.
    run: Option<Run>,
    envelope: Envelope,
    reply: R,
    include_usage: bool,
    usage: Usage,
    choice: usize,
    opened: bool,
    ready: VecDeque<String>,
}

impl<R: Reply> Streaming<R> {
    /// The next event's data.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            let event = self.run.as_mut()?.next().await;
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        if !self.opened && !matches!(event, Event::Failed(_)) {
            self.opened = true;
            if let Some(choice) = self.reply.opening(self.choice) {
                self.chunk(choice);
            }
        }
        match event {
            // Text that is still held back (half a character, or perhaps a stop string) comes with a later token.
            Event::Piece { text, logprob: None } if text.is_empty() => {}
            Event::Piece { text, logprob } => {
                let choice = self.reply.delta(self.choice, &text, logprob.as_ref());
                self.chunk(choice);
            }
            Event::Finished { reason, generated_tokens } => {
                self.usage.completion_tokens += generated_tokens;
                self.usage.cached_tokens = self.run.as_ref().map_or(0, Run::cached_tokens);
                let choice = self.reply.closing(self.choice, reason);
                self.chunk(choice);
                self.choice += 1;
                self.opened = false;
                if self.run.as_ref().is_none_or(|run| self.choice == run.choices) {
                    self.finish();
                }
            }
            Event::Failed(error) => {
                self.ready.push_back(error.body().to_string());
                self.run = None;
            }
        }
    }

    fn chunk(&mut self, choice: Value) {
        let usage = self.include_usage.then_some(Value::Null);
        self.ready.push_back(self.envelope.wrap(R::CHUNK_OBJECT, vec![choice], usage).to_string());
    }

    fn finish(&mut self) {
        self.run = None;
        if self.include_usage {
            let usage = Some(self.usage.to_json());
            self.ready.push_back(self.envelope.wrap(R::CHUNK_OBJECT, Vec::new(), usage).to_string());
        }
        self.ready.push_back("[DONE]".to_owned());
    }
}
