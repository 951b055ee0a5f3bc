//! A running request as text, calls and ends: what every API turns into its own words.

use crate::{
    error::ApiError,
    service::Run,
    tools::{Call, Part, Reader, Toolbox},
    worker::{Event, StopReason, TokenLogprob},
};
use std::{collections::VecDeque, time::Instant};

/// What to look for in the generated text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// Calls of these functions.
    pub(crate) toolbox: Option<Toolbox>,
    /// Texts that end the answer and are reported; `stop` of the engine only ends it.
    pub(crate) stops: Vec<String>,
}

/// What happens in an answer, choice by choice.
#[derive(Debug)]
pub(crate) enum Item {
    /// Text that became certain, and the tokens of it where log-probabilities were asked for. Either may be empty.
    Text(String, Vec<TokenLogprob>),
    Call(Call),
    End(End),
}

/// How a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: Reason,
    pub(crate) tokens: usize,
}

/// Why it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    Stop,
    /// One of [`Reading::stops`].
    StopText(String),
    Length,
    Calls,
}

/// Token counts and times of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    /// Those of the prompt that were not computed but kept from earlier requests.
    pub(crate) cached_tokens: usize,
    /// Left out of it, because it was too long.
    pub(crate) dropped_tokens: usize,
    /// Of all choices so far.
    pub(crate) completion_tokens: usize,
    pub(crate) begin: Instant,
    pub(crate) first_token: Option<Instant>,
}

/// An answer on its way. Dropping it cancels the request.
pub(crate) struct Answers {
    run: Option<Run>,
    reading: Reading,
    choices: usize,
    choice: usize,
    state: State,
    ready: VecDeque<(usize, Item)>,
    pub(crate) usage: Usage,
}

/// Of one choice.
#[derive(Default)]
struct State {
    reader: Option<Reader>,
    held: String,
    has_calls: bool,
    tokens: usize,
}

impl Answers {
    pub(crate) fn new(run: Run, reading: Reading) -> Self {
        let usage = Usage {
            prompt_tokens: run.prompt_tokens,
            cached_tokens: 0,
            dropped_tokens: run.dropped_tokens,
            completion_tokens: 0,
            begin: Instant::now(),
            first_token: None,
        };
        let mut answers = Self {
            choices: run.choices,
            run: Some(run),
            reading,
            choice: 0,
            state: State::default(),
            ready: VecDeque::new(),
            usage,
        };
        answers.state = answers.new_state();
        answers
    }

    pub(crate) fn choices(&self) -> usize {
        self.choices
    }

    fn new_state(&self) -> State {
        State { reader: self.reading.toolbox.as_ref().map(Reader::new), ..State::default() }
    }

    /// The next item with the index of its choice; `None` when all choices have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Item)>, ApiError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            let Some(run) = &mut self.run else { return Ok(None) };
            let event = run.next().await;
            self.usage.cached_tokens = run.cached_tokens();
            match event {
                Event::Piece { text, logprob } => self.piece(&text, logprob),
                Event::Finished { reason, generated_tokens } => {
                    let held = std::mem::take(&mut self.state.held);
                    self.text(held, Vec::new());
                    let reason = match reason {
                        StopReason::Stop => Reason::Stop,
                        StopReason::Length => Reason::Length,
                    };
                    self.end(reason, generated_tokens);
                }
                Event::Failed(error) => {
                    self.run = None;
                    return Err(error);
                }
            }
        }
    }

    fn piece(&mut self, text: &str, logprob: Option<TokenLogprob>) {
        self.usage.first_token.get_or_insert_with(Instant::now);
        self.state.tokens += 1;
        let logprobs = logprob.into_iter().collect();
        if self.reading.stops.is_empty() {
            return self.text(text.to_owned(), logprobs);
        }
        self.state.held.push_str(text);
        let held = &self.state.held;
        let met = self.reading.stops.iter().filter_map(|stop| Some((held.find(stop.as_str())?, stop))).min();
        if let Some((at, stop)) = met {
            let (before, stop) = (held[..at].to_owned(), stop.clone());
            self.text(before, logprobs);
            // Only requests with one choice have such texts: what runs may be cancelled.
            if let Some(run) = self.run.take() {
                run.enough();
            }
            return self.end(Reason::StopText(stop), self.state.tokens);
        }
        let keep = self.reading.stops.iter().map(|stop| crate::tools::held_back(held, stop)).max().unwrap_or(0);
        let certain = held[..held.len() - keep].to_owned();
        self.state.held.drain(..certain.len());
        self.text(certain, logprobs);
    }

    fn text(&mut self, text: String, logprobs: Vec<TokenLogprob>) {
        let Some(reader) = &mut self.state.reader else {
            if !text.is_empty() || !logprobs.is_empty() {
                self.ready.push_back((self.choice, Item::Text(text, logprobs)));
            }
            return;
        };
        let parts = reader.push(&text);
        if !logprobs.is_empty() {
            self.ready.push_back((self.choice, Item::Text(String::new(), logprobs)));
        }
        self.parts(parts);
    }

    fn parts(&mut self, parts: Vec<Part>) {
        for part in parts {
            let item = match part {
                Part::Text(text) => Item::Text(text, Vec::new()),
                Part::Call(call) => {
                    self.state.has_calls = true;
                    Item::Call(call)
                }
            };
            self.ready.push_back((self.choice, item));
        }
    }

    fn end(&mut self, reason: Reason, tokens: usize) {
        if let Some(reader) = self.state.reader.take() {
            let parts = reader.finish();
            self.parts(parts);
        }
        let reason = if self.state.has_calls && reason != Reason::Length { Reason::Calls } else { reason };
        self.usage.completion_tokens += tokens;
        self.ready.push_back((self.choice, Item::End(End { reason, tokens })));
        self.choice += 1;
        self.state = self.new_state();
        if self.choice == self.choices {
            self.run = None;
        }
    }

    /// Everything, choice by choice.
    pub(crate) async fn whole(mut self) -> Result<(Vec<Whole>, Usage), ApiError> {
        let mut done = Vec::with_capacity(self.choices);
        let (mut text, mut logprobs, mut calls) = (String::new(), Vec::new(), Vec::new());
        while let Some((_, item)) = self.next().await? {
            match item {
                Item::Text(more, tokens) => {
                    text.push_str(&more);
                    logprobs.extend(tokens);
                }
                Item::Call(call) => calls.push(call),
                Item::End(end) => done.push(Whole {
                    text: std::mem::take(&mut text),
                    logprobs: std::mem::take(&mut logprobs),
                    calls: std::mem::take(&mut calls),
                    end,
                }),
            }
        }
        Ok((done, self.usage))
    }
}

/// A choice that has ended.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) calls: Vec<Call>,
    pub(crate) end: End,
}
