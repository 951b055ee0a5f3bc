//! Health by output: a model that is loaded says now what it said when it was loaded first.
//!
//! A probe reads a fixed text and goes on with it. Numbers are deterministic, so tokens and logits have to be the same bits for as
//! long as the weights are: a difference means memory or a file that went bad, and nobody would see it otherwise. Such a model
//! gets no requests; it is loaded anew, and if it then says what it has to, it is back. What it has to say at the first load can come
//! from a file: [`HealthBaseline`].

mod baseline;
mod probe;
mod watch;

pub(crate) use baseline::Match;
pub use baseline::{BaselineError, HealthBaseline};
pub(crate) use probe::run as run_probe;
pub use probe::{Patience, Probe, ProbeText};
pub(crate) use watch::{Health, Mismatch, warm_up, watch};

use serde_json::{Value, json};

/// What is known of a model's health.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// What it said when it was loaded first, with the digest of its files then; by artifact, as each says something else.
    baselines: Vec<(usize, Baseline)>,
    /// What is wrong, since it is.
    fault: Option<String>,
    /// The files on disk are not those that were loaded.
    is_replaced: bool,
    probes: u64,
    /// What the first probe was compared with, in words.
    compared: Option<String>,
}

#[derive(Debug, Clone)]
struct Baseline {
    probe: Probe,
    text: ProbeText,
    digest: Option<String>,
}

impl State {
    /// Why the model must not answer.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether people should look: the model answers, but its files have changed.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    fn baseline(&self, artifact: usize) -> Option<&Baseline> {
        self.baselines.iter().find(|(of, _)| *of == artifact).map(|(_, baseline)| baseline)
    }

    /// For `/health`; null where nothing is known yet.
    pub(crate) fn about(&self, artifact: usize) -> Value {
        let Some(Baseline { probe, digest, .. }) = self.baseline(artifact) else { return Value::Null };
        json!({
            "ok": self.fault.is_none(),
            "fault": self.fault,
            "files_replaced": self.is_replaced,
            "probes": self.probes,
            "baseline": self.compared,
            "numerics": probe.numerics,
            "logits_sha256": probe.logits_sha256,
            "perplexity": probe.perplexity,
            "digest": digest.as_ref().map(|digest| format!("sha256:{digest}")),
        })
    }
}
