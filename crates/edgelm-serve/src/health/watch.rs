//! Probing what is loaded, at times when nobody waits, and what happens to a model that fails.

use super::{Baseline, HealthBaseline, Match, Probe, ProbeText, State};
use crate::{
    metrics::HealthMetrics,
    models::{Entry, Models},
    service::Service,
    telemetry::Telemetry,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// Loads in a row that may not mend a model before it is left alone until the server starts anew.
const MAX_RELOADS: u32 = 3;

/// The health of one model.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    /// What it has to say, whatever it said before.
    expected: Option<Arc<HealthBaseline>>,
}

/// A model that does not say what it has to.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Mismatch {
    what: String,
    /// It has said nothing in this process before: the baseline is from a file.
    pub(crate) is_first: bool,
}

/// What a probe told.
enum Verdict {
    Same,
    /// It was given up, because a request came.
    Busy,
    Different(String),
}

impl Health {
    pub(crate) fn new(expected: Option<Arc<HealthBaseline>>) -> Self {
        Self { state: Mutex::default(), expected }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an artifact is given to read.
    fn text(&self, artifact: usize) -> ProbeText {
        self.state().baseline(artifact).map_or_else(ProbeText::default, |baseline| baseline.text.clone())
    }

    /// An artifact's first probe: compared with the file, if there is one, and remembered where it is good.
    fn begin(&self, id: &str, artifact: usize, baseline: Baseline, metrics: &HealthMetrics) -> Verdict {
        metrics.probes.inc();
        let digest = baseline.digest.as_deref();
        let compared = match &self.expected {
            None => None,
            Some(expected) => match expected.compare(id, digest, &baseline.probe) {
                Match::Different(what) => {
                    metrics.mismatches.inc();
                    return Verdict::Different(what);
                }
                Match::Same => Some("the same bits".to_owned()),
                Match::Near { other, drift } => {
                    metrics.drift.set(drift);
                    let numerics = &baseline.probe.numerics;
                    tracing::warn!(
                        model = id,
                        numerics,
                        drift,
                        "the health baseline has no run of this kind: only the perplexity was compared"
                    );
                    Some(format!("only the perplexity, with that of {other}"))
                }
            },
        };
        let mut state = self.state();
        state.probes += 1;
        state.compared = compared;
        state.baselines.push((artifact, baseline));
        Verdict::Same
    }

    /// Compares with what the artifact said first.
    fn judge(&self, artifact: usize, probe: &Probe, metrics: &HealthMetrics) -> Verdict {
        let mut state = self.state();
        state.probes += 1;
        metrics.probes.inc();
        let Some(baseline) = state.baseline(artifact) else { return Verdict::Same };
        let drift = (probe.perplexity / baseline.probe.perplexity).ln();
        metrics.drift.set(if drift.is_finite() { drift } else { f64::INFINITY });
        // Bits first: a perplexity that is not a number equals nothing, not even itself.
        if probe.logits_sha256 == baseline.probe.logits_sha256 && probe.tokens == baseline.probe.tokens {
            return Verdict::Same;
        }
        Verdict::Different(format!(
            "it says {:?} where it said {:?}; perplexity {:.4}, was {:.4}",
            probe.tokens, baseline.probe.tokens, probe.perplexity, baseline.probe.perplexity
        ))
    }
}

/// Probes a model that was just loaded, before it gets requests: that also warms it up. An error is a model that does not say
/// what it said when it was loaded before.
pub(crate) async fn warm_up(
    entry: &Entry,
    artifact: usize,
    service: &Arc<Service>,
    metrics: &HealthMetrics,
) -> Result<(), Mismatch> {
    let health = &entry.health;
    let is_first = health.state().baseline(artifact).is_none();
    let mismatch = |what: String| Mismatch { what, is_first };
    let digest = entry.digest_of(artifact).await;
    let text = match &health.expected {
        Some(expected) if is_first => expected.text(&entry.id, digest.as_deref()).map_err(mismatch)?,
        _ => health.text(artifact),
    };
    let probe = service.probe(text.clone(), || true).await;
    let probe = probe.map_err(|error| mismatch(format!("it cannot be probed: {error}")))?;
    let Some(probe) = probe else { return Ok(()) };
    let verdict = match is_first {
        true => health.begin(&entry.id, artifact, Baseline { probe, text, digest }, metrics),
        false => health.judge(artifact, &probe, metrics),
    };
    match verdict {
        Verdict::Same | Verdict::Busy => {
            let mut state = entry.health.state();
            state.fault = None;
            state.is_replaced = false;
            Ok(())
        }
        Verdict::Different(what) => {
            // One that was never loaded is told as that.
            if !is_first {
                health.state().fault = Some(what.clone());
            }
            Err(mismatch(what))
        }
    }
}

/// Probes every loaded model again and again, for as long as the server lives.
pub(crate) async fn watch(models: Arc<Models>, interval: Duration, metrics: HealthMetrics, telemetry: Arc<Telemetry>) {
    let mut reloads = vec![0; models.all().len()];
    loop {
        sleep(interval).await;
        for (entry, reloads) in models.all().iter().zip(&mut reloads) {
            check(&models, entry, reloads, &metrics, &telemetry).await;
        }
        let failing = models.all().iter().filter(|entry| entry.health.state().fault.is_some()).count();
        metrics.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }
}

async fn check(
    models: &Arc<Models>,
    entry: &Arc<Entry>,
    reloads: &mut u32,
    metrics: &HealthMetrics,
    telemetry: &Telemetry,
) {
    let is_failing = entry.health.state().fault.is_some();
    if !is_failing {
        let verdict = match entry.loaded() {
            None => return,
            Some((artifact, service)) => {
                files(entry, artifact, metrics, telemetry).await;
                let outcome = service.probe_when_idle(entry.health.text(artifact)).await;
                drop(service);
                entry.let_go();
                match outcome {
                    Ok(Some(probe)) => entry.health.judge(artifact, &probe, metrics),
                    Ok(None) => Verdict::Busy,
                    Err(error) => Verdict::Different(format!("it cannot be probed: {error}")),
                }
            }
        };
        let Verdict::Different(what) = verdict else {
            if matches!(verdict, Verdict::Same) {
                *reloads = 0;
            }
            return;
        };
        tracing::error!(
            model = entry.id,
            what,
            "the model does not say what it said; it gets no requests, and is loaded anew"
        );
        metrics.mismatches.inc();
        telemetry.event("health_mismatch", &entry.id, None, Some(what.clone()));
        entry.health.state().fault = Some(what);
    }
    if *reloads >= MAX_RELOADS {
        return;
    }
    *reloads += 1;
    let outcome = models.reload(entry).await;
    // Read again, not remembered: the same time of modification may stand over other bytes.
    let digest = entry.digest_anew().await;
    let is_same_file = match entry.loaded() {
        Some((artifact, _)) => entry.health.state().baseline(artifact).is_none_or(|it| it.digest == digest),
        None => true,
    };
    match outcome {
        Ok(()) => {
            tracing::warn!(model = entry.id, "loaded anew, the model says what it said before");
            telemetry.event("health_restored", &entry.id, digest, None);
        }
        Err(error) => {
            let files = if is_same_file { "" } else { "; its files are not those that were loaded first" };
            let what = format!("loaded anew: {error}{files}");
            tracing::error!(
                model = entry.id,
                what,
                attempt = *reloads,
                of = MAX_RELOADS,
                "the model is still not what it was"
            );
            telemetry.event("health_reload_failed", &entry.id, digest, Some(what.clone()));
            entry.health.state().fault = Some(what);
        }
    }
}

/// Tells once where the files of a model are not those that it was loaded from. What is loaded goes on.
async fn files(entry: &Entry, artifact: usize, metrics: &HealthMetrics, telemetry: &Telemetry) {
    let known = entry.health.state().baseline(artifact).and_then(|baseline| baseline.digest.clone());
    let Some(known) = known else { return };
    let now = entry.digest_of(artifact).await;
    let is_replaced = now.as_ref() != Some(&known);
    let was_replaced = std::mem::replace(&mut entry.health.state().is_replaced, is_replaced);
    if is_replaced && !was_replaced {
        tracing::error!(
            model = entry.id,
            "the model's files have changed on disk since they were loaded, or cannot be read"
        );
        metrics.replaced.inc();
        telemetry.event("files_changed", &entry.id, now, None);
    }
}
