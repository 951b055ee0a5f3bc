//! What the server says about its requests: access lines, audit records, traces, the live view. All of it comes from one [`Journey`]
//! per request, so that it agrees.

mod forward;
mod journey;
mod live;
mod machine;
mod timeline;
mod traces;
mod watch;

pub use forward::{ForwardConfig, ForwardError, OtlpConfig, otlp_headers};
pub use journey::ACCESS_LINES;
pub(crate) use journey::Journey;
pub(crate) use live::Live;
pub(crate) use machine::Machine;
pub(crate) use timeline::{Row, Timelines};
pub(crate) use traces::Traces;
pub(crate) use watch::observe;

use crate::{
    audit::{AuditState, Entry},
    error::ApiError,
};
use journey::Ended;
use std::sync::Arc;

/// A request with `1` in this header has its times recorded; its answer says there where they can be fetched. For admins.
pub(crate) const TRACE: &str = "x-edgelm-trace";

/// Where journeys end.
#[derive(Default)]
pub(crate) struct Telemetry {
    audit: Option<Arc<AuditState>>,
    traces: Option<Traces>,
    pub(crate) live: Live,
    pub(crate) timelines: Timelines,
}

impl Telemetry {
    pub(crate) fn new(audit: Option<Arc<AuditState>>, traces: Option<Traces>) -> Self {
        Self { audit, traces, live: Live::default(), timelines: Timelines::default() }
    }

    /// An error while requests cannot be recorded but have to be.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.check())
    }

    /// Something happened to a model: for the audit log.
    pub(crate) fn event(&self, event: &'static str, model: &str, digest: Option<String>, detail: Option<String>) {
        if let Some(audit) = &self.audit {
            let model_digest = digest.map(|digest| format!("sha256:{digest}"));
            audit.record(Entry::Event { event, model: Some(model.to_owned()), model_digest, detail });
        }
    }

    /// Sends what is left. Blocks for a few seconds at most.
    pub(crate) fn stop(&self) {
        if let Some(traces) = &self.traces {
            traces.stop();
        }
    }

    /// The audit log, if one is kept.
    pub(crate) fn audit(&self) -> Option<&AuditState> {
        self.audit.as_deref()
    }

    /// Whether prompts and answers are kept until the request's end.
    fn wants_content(&self) -> bool {
        self.audit.as_ref().is_some_and(|audit| audit.with_content)
    }

    /// Whether prompts are, for whatever reason.
    fn wants_prompt(&self) -> bool {
        self.wants_content() || self.traces.as_ref().is_some_and(Traces::keeps_inputs)
    }

    /// A request is over.
    fn ended(&self, journey: &Journey, ended: &Ended) {
        journey.log(ended);
        self.live.ended(journey, ended);
        self.timelines.ended(journey, ended);
        if let Some(traces) = self.traces.as_ref().filter(|_| journey.is_work()) {
            traces.ended(journey, ended);
        }
        if let Some(audit) = self.audit.as_ref().filter(|_| journey.is_work()) {
            audit.record(Entry::Request(Box::new(journey.record(ended))));
        }
    }
}
