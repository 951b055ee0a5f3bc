//! A running request as a stream: server-sent events, or one JSON document a line.
//!
//! Headers go out at once, so clients and proxies do not time out while a request waits; comments keep the connection
//! of events alive meanwhile. What fails later is an item of its own, after which the stream ends.

use crate::{
    answer::{Answers, Item, Usage},
    error::ApiError,
};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use futures::stream::{self, Stream};
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible, time::Duration};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One thing that is sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    /// Name of the event, where the API names its events.
    pub(crate) event: Option<&'static str>,
    pub(crate) data: String,
}

impl Frame {
    pub(crate) fn data(data: &Value) -> Self {
        Self { event: None, data: data.to_string() }
    }

    pub(crate) fn named(event: &'static str, data: &Value) -> Self {
        Self { event: Some(event), data: data.to_string() }
    }
}

/// How an API writes a stream.
pub(crate) trait Writer: Send + 'static {
    /// Before anything else. Not called where the request fails first.
    fn open(&mut self, _: &Usage) -> Vec<Frame> {
        Vec::new()
    }
    /// Something of choice number `choice`.
    fn item(&mut self, choice: usize, item: Item, usage: &Usage) -> Vec<Frame>;
    /// After the last choice's end.
    fn close(&mut self, usage: &Usage) -> Vec<Frame>;
    /// In place of what would have come.
    fn failed(&mut self, error: &ApiError) -> Vec<Frame>;
}

/// As server-sent events. The run is cancelled when the client drops the response.
pub(crate) fn events(answers: Answers, writer: impl Writer) -> Response {
    let events = frames(answers, writer);
    let events = futures::StreamExt::map(events, |frame| {
        // The name first: some clients read line by line.
        let event = match frame.event {
            Some(name) => SseEvent::default().event(name),
            None => SseEvent::default(),
        };
        Ok::<_, Infallible>(event.data(frame.data))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// As JSON lines.
pub(crate) fn lines(answers: Answers, writer: impl Writer) -> Response {
    let lines =
        futures::StreamExt::map(frames(answers, writer), |frame| Ok::<_, Infallible>(Bytes::from(frame.data + "\n")));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn frames(answers: Answers, writer: impl Writer) -> impl Stream<Item = Frame> {
    let state = Streaming { answers: Some(answers), writer, is_open: false, ready: VecDeque::new() };
    stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) })
}

struct Streaming<W> {
    /// `None` once the last item has been read, which gives the slot back.
    answers: Option<Answers>,
    writer: W,
    is_open: bool,
    ready: VecDeque<Frame>,
}

impl<W: Writer> Streaming<W> {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            let answers = self.answers.as_mut()?;
            let item = answers.next().await;
            if !self.is_open && item.is_ok() {
                self.is_open = true;
                self.ready.extend(self.writer.open(&answers.usage));
            }
            match item {
                Ok(Some((choice, item))) => self.ready.extend(self.writer.item(choice, item, &answers.usage)),
                Ok(None) => {
                    self.ready.extend(self.writer.close(&answers.usage));
                    self.answers = None;
                }
                Err(error) => {
                    self.ready.extend(self.writer.failed(&error));
                    self.answers = None;
                }
            }
        }
    }
}
