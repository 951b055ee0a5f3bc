//! Prompts as log records, where the operator keeps them to see what a model is asked (and to make it better by that).

use super::super::{Journey, journey::Ended};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::LogRecord,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// A request's record; `None` where it never came to a prompt.
pub(super) fn record(journey: &Journey, ended: &Ended) -> Option<LogRecord> {
    let steps = &ended.steps;
    let prompt = steps.prompt()?;
    let time_unix_nano = nanos(journey.arrived);
    let mut attributes = vec![
        attribute("edgelm.request.id", text(&journey.id)),
        attribute("edgelm.client", text(&journey.client(steps))),
        attribute("http.route", text(&journey.route)),
        attribute("edgelm.result", text(ended.result)),
    ];
    let known = [("gen_ai.response.model", &steps.model), ("edgelm.model.digest", &steps.model_digest)];
    attributes.extend(known.into_iter().filter_map(|(name, value)| Some(attribute(name, text(value.as_ref()?)))));
    let tokens = steps.prompt_tokens.and_then(|tokens| i64::try_from(tokens).ok());
    attributes.extend(tokens.map(|tokens| attribute("gen_ai.usage.input_tokens", Value::IntValue(tokens))));
    Some(LogRecord {
        time_unix_nano,
        observed_time_unix_nano: time_unix_nano,
        body: Some(AnyValue { value: Some(text(prompt)) }),
        attributes,
        event_name: "edgelm.input".to_owned(),
        ..LogRecord::default()
    })
}

pub(super) fn scope() -> InstrumentationScope {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    InstrumentationScope { name: "edgelm-serve".to_owned(), version, ..InstrumentationScope::default() }
}

pub(super) fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(super) fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}
