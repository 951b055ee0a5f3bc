//! What one request spent its time on, as a Chrome trace (chrome://tracing, Perfetto), for who asks for it with `x-edgelm-trace: 1`.
//!
//! A row each for the request's phases, the passes that it took part in, and what was picked from them. The last few traces are kept
//! for a while, to be fetched from `/v1/traces/{id}`. No contents.

use super::{Journey, journey::Ended};
use crate::metrics::seconds;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Of one request; those behind are counted, not kept. Some 4 MB.
const MOST_EVENTS: usize = 20_000;
/// Of the server.
const MOST_TRACES: usize = 16;
/// How long a trace waits to be fetched.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// Rows of the viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    Request = 1,
    Passes = 2,
    Picks = 3,
}

const ROWS: [(Row, &str); 3] =
    [(Row::Request, "request"), (Row::Passes, "passes over the weights"), (Row::Picks, "tokens picked")];

struct Event {
    name: &'static str,
    row: Row,
    start: Instant,
    time: Duration,
    args: Value,
}

/// What is recorded of one request.
#[derive(Default)]
pub(crate) struct Timeline(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    events: Vec<Event>,
    dropped: usize,
}

impl Timeline {
    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that has taken from `start` until now.
    pub(crate) fn add(&self, name: &'static str, row: Row, start: Instant, args: Value) {
        self.add_for(name, row, start, start.elapsed(), args);
    }

    /// Something that has taken `time`.
    pub(crate) fn add_for(&self, name: &'static str, row: Row, start: Instant, time: Duration, args: Value) {
        let mut recorded = self.recorded();
        match recorded.events.len() < MOST_EVENTS {
            true => recorded.events.push(Event { name, row, start, time, args }),
            false => recorded.dropped += 1,
        }
    }

    /// The file. Times are in microseconds since the request's arrival.
    fn render(&self, journey: &Journey, ended: &Ended) -> Value {
        let steps = &ended.steps;
        let recorded = self.recorded();
        let event = |name: &str, row: Row, start: Instant, time: Duration, args: &Value| {
            let start = start.saturating_duration_since(journey.received);
            json!({"name": name, "ph": "X", "pid": 1, "tid": row as u32, "ts": seconds(start) * 1e6,
                "dur": seconds(time) * 1e6, "args": args})
        };
        let mut events = vec![json!({"name": "process_name", "ph": "M", "pid": 1, "tid": 0,
            "args": {"name": format!("edgelm {}", journey.id)}})];
        events.extend(ROWS.iter().map(|(row, name)| {
            json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": *row as u32, "args": {"name": name}})
        }));
        let about = json!({"route": journey.route, "model": steps.model, "status": ended.status, "result": ended.result,
            "prompt_tokens": steps.prompt_tokens, "cached_tokens": steps.cached_tokens,
            "generated_tokens": steps.generated_tokens});
        events.push(event("request", Row::Request, journey.received, ended.took, &about));
        let end = journey.received + ended.took;
        let phases = [
            ("prepare", Some(journey.received), steps.queued),
            ("queue", steps.queued, steps.started),
            ("prefill", steps.started, steps.first_token),
            ("decode", steps.first_token, steps.done),
            ("send", steps.done, Some(end)),
        ];
        for (name, from, to) in phases {
            let Some(from) = from else { continue };
            let to = to.or(steps.done).unwrap_or(end);
            events.push(event(name, Row::Request, from, to.saturating_duration_since(from), &json!({})));
        }
        events.extend(recorded.events.iter().map(|it| event(it.name, it.row, it.start, it.time, &it.args)));
        let other = json!({"id": journey.id, "events_dropped": recorded.dropped});
        json!({"displayTimeUnit": "ms", "otherData": other, "traceEvents": events})
    }
}

/// The traces that wait to be fetched.
#[derive(Default)]
pub(crate) struct Timelines(Mutex<VecDeque<Kept>>);

struct Kept {
    id: String,
    ended: Instant,
    about: Value,
    file: Value,
}

impl Timelines {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| it.ended.elapsed() < KEPT);
        kept
    }

    pub(super) fn ended(&self, journey: &Journey, ended: &Ended) {
        let Some(timeline) = journey.timeline() else { return };
        let file = timeline.render(journey, ended);
        let about = json!({"id": journey.id, "route": journey.route, "model": ended.steps.model, "result": ended.result,
            "elapsed_s": seconds(ended.took), "url": url(&journey.id)});
        let mut kept = self.kept();
        // Clients may use an id twice: the last one counts.
        kept.retain(|it| it.id != journey.id);
        kept.push_back(Kept { id: journey.id.clone(), ended: Instant::now(), about, file });
        while kept.len() > MOST_TRACES {
            kept.pop_front();
        }
    }

    /// What can be fetched, newest first.
    pub(crate) fn list(&self) -> Vec<Value> {
        self.kept().iter().rev().map(|it| it.about.clone()).collect()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Value> {
        self.kept().iter().find(|it| it.id == id).map(|it| it.file.clone())
    }
}

/// Where the trace of a request can be fetched.
pub(super) fn url(id: &str) -> String {
    let mut url = "/v1/traces/".to_owned();
    for byte in id.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            true => url.push(char::from(byte)),
            false => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}
