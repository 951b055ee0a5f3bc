//! Traces for a collector that speaks OTLP over gRPC: a span per request, with the queue, the prompt and the answer inside.
//!
//! Spans are made when a request is over, from the times of its journey, so a request that is not traced costs nothing.

use super::{
    Journey, OtlpConfig,
    forward::{Exporter, Forwarder},
    journey::Ended,
};
use crate::{ServeError, metrics::Metrics};
use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
        TracerProvider,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// For the spans that are left when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Sends spans.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    forwarder: Forwarder,
}

impl Traces {
    /// Must be called inside the runtime, which carries the connection; that is made when the first spans go out, and failures are
    /// logged.
    pub(crate) fn start(config: &OtlpConfig, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let resource = Resource::builder()
            .with_service_name("edgelm")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let forwarder = Forwarder::start(config, &resource, metrics)?;
        let exporter = Exporter::new(forwarder.clone());
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("edgelm-serve");
        Ok(Self { provider, tracer, forwarder })
    }

    /// Whether prompts are sent too.
    pub(super) fn keeps_inputs(&self) -> bool {
        self.forwarder.keeps_inputs()
    }

    /// Sends what is left. Blocks for a few seconds at most.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_WORDS) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the last traces could not be sent");
        }
        self.forwarder.stop();
    }

    /// Spans of a request that is over.
    pub(super) fn ended(&self, journey: &Journey, ended: &Ended) {
        self.forwarder.ended(journey, ended);
        let steps = &ended.steps;
        let at = |time: Instant| journey.arrived + time.saturating_duration_since(journey.received);
        let end = journey.arrived + ended.took;
        let parent = match &journey.parent {
            Some(parent) => Context::new().with_remote_span_context(parent.clone()),
            None => Context::new(),
        };
        let mut about = vec![
            KeyValue::new("http.request.method", journey.method),
            KeyValue::new("http.route", journey.route.clone()),
            KeyValue::new("edgelm.request.id", journey.id.clone()),
            KeyValue::new("edgelm.result", ended.result),
        ];
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        about.extend(ended.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        about.extend(steps.model.clone().map(|model| KeyValue::new("gen_ai.response.model", model)));
        if let Some(tokens) = steps.prompt_tokens {
            about.push(KeyValue::new("gen_ai.usage.input_tokens", number(tokens)));
            about.push(KeyValue::new("gen_ai.usage.output_tokens", number(steps.generated_tokens)));
        }
        about.extend(steps.cached_tokens.map(|tokens| KeyValue::new("edgelm.cached_tokens", number(tokens))));
        let span = self.tracer.span_builder(format!("{} {}", journey.method, journey.route));
        let span = span.with_kind(SpanKind::Server).with_start_time(journey.arrived).with_attributes(about);
        let mut span = span.start_with_context(&self.tracer, &parent);
        if ended.status.is_none_or(|status| status >= 500) {
            span.set_status(Status::error(ended.result));
        }
        let inside = parent.with_span(span);
        let phases = [
            ("queue", Some(journey.received).filter(|_| steps.prompt_tokens.is_some()), steps.started),
            ("prefill", steps.started, steps.first_token),
            ("decode", steps.first_token, steps.done),
        ];
        for (name, from, to) in phases {
            let Some(from) = from else { continue };
            let phase = self.tracer.span_builder(name).with_start_time(at(from));
            // One that did not come to its end has that of the request.
            let until: SystemTime = to.or(steps.done).map_or(end, at);
            phase.start_with_context(&self.tracer, &inside).end_with_timestamp(until);
        }
        inside.span().end_with_timestamp(end);
    }
}

/// A `traceparent` header (W3C Trace Context, version 00); others are as if there were none, as the specification has it.
pub(super) fn parent(header: &str) -> Option<SpanContext> {
    let parts: Vec<&str> = header.trim().split('-').collect();
    let [version, trace, span, flags, rest @ ..] = &parts[..] else { return None };
    let is_hex =
        |text: &str, len: usize| text.len() == len && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let is_fit = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !is_fit || *version == "ff" || (*version == "00" && !rest.is_empty()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_the_specification() {
        let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parent(known).expect("valid");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled() && context.is_remote());
        assert!(parent(&known.replacen("00", "cc", 1)).is_some(), "a later version");
        assert!(parent(&format!("{}-later", known.replacen("00", "cc", 1))).is_some());
        for bad in [
            "",
            "00",
            &known.replacen("00", "ff", 1),
            &known.to_uppercase(),
            &format!("{known}-more"),
            &known.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &known.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &known[..54],
        ] {
            assert!(parent(bad).is_none(), "{bad}");
        }
    }
}
