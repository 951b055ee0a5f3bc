//! What the server says about its requests: access lines, audit records, the live view. All of it comes from one [`Journey`]
//! per request, so that it agrees.

mod journey;
mod watch;

pub use journey::ACCESS_LINES;
pub(crate) use journey::Journey;
pub(crate) use watch::observe;

use crate::{
    audit::{AuditState, Entry},
    error::ApiError,
};
use journey::Ended;
use std::sync::Arc;

/// Where journeys end.
#[derive(Default)]
pub(crate) struct Telemetry {
    audit: Option<Arc<AuditState>>,
}

impl Telemetry {
    pub(crate) fn new(audit: Option<Arc<AuditState>>) -> Self {
        Self { audit }
    }

    /// An error while requests cannot be recorded but have to be.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.check())
    }

    /// Whether prompts and answers are kept until the request's end.
    fn wants_content(&self) -> bool {
        self.audit.as_ref().is_some_and(|audit| audit.with_content)
    }

    /// A request is over.
    fn ended(&self, journey: &Journey, ended: &Ended) {
        journey.log(ended);
        if let Some(audit) = self.audit.as_ref().filter(|_| journey.is_work()) {
            audit.record(Entry::Request(Box::new(journey.record(ended))));
        }
    }
}
