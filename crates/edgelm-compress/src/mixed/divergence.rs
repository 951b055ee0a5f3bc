//! KL divergence of a model that was written from its parent, on windows that were held out.

use crate::{CompressError, Walk, calibration::first_token, logits::Logits};
use edgelm_engine::{Engine, Step, Want, Workspace};
use edgelm_kernels::{Cpu, kl_divergence};
use edgelm_model::Checkpoint;
use rayon::prelude::*;
use std::{path::Path, sync::Arc};

/// Rows of logits at a time.
const LOGIT_ROWS: usize = 128;

/// What the parent says of the held-out windows.
pub(super) struct Reference<'a> {
    cpu: &'a Arc<Cpu>,
    windows: Vec<Vec<u32>>,
    /// After the last layer.
    walk: Walk<'a>,
    logits: Logits<'a>,
}

impl<'a> Reference<'a> {
    /// Runs the parent, one layer in memory at a time. Every window begins with the token that begins documents, as in
    /// `edgelm eval`.
    pub fn new(
        parent: &Checkpoint,
        cpu: &'a Arc<Cpu>,
        windows: &[Vec<u32>],
        on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
    ) -> Result<Self, CompressError> {
        let first = first_token(parent)?;
        let begun = |window: &Vec<u32>| match first {
            Some(first) if window.first() != Some(&first) => {
                let rest = &window[..window.len().saturating_sub(1)];
                [&[first], rest].concat()
            }
            _ => window.clone(),
        };
        let windows: Vec<Vec<u32>> = windows.iter().map(begun).collect();
        let mut walk = Walk::begin(parent, cpu, &windows)?;
        let layers = parent.config().layers.len();
        for layer in 0..layers {
            on_layer(layer, layers)?;
            walk.advance(parent)?;
        }
        Ok(Self { cpu, windows, walk, logits: Logits::load(parent, cpu)? })
    }

    /// Positions that are measured.
    pub fn tokens(&self) -> usize {
        self.walk.positions()
    }

    /// Mean over positions of Σᵢ pᵢ ln(pᵢ / qᵢ), p the parent's distribution, q that of the model in `candidate` as the engine
    /// runs it, with its usual cache: the measure of `edgelm eval`. Natural logarithm; sums in f64 in the order of the
    /// windows. Errors on logits that are not finite.
    pub fn divergence(&self, candidate: &Path) -> Result<f64, CompressError> {
        let engine = Engine::load(Arc::new(Checkpoint::open(candidate)?), Arc::clone(self.cpu))?;
        let mut workspace = Workspace::default();
        let (width, vocab) = (self.walk.hidden_size(), self.logits.vocab_size());
        let mut sum = 0.0;
        for (index, window) in self.windows.iter().enumerate() {
            let hidden = self.walk.hidden(index)?;
            let mut sequence = engine.sequence(engine.default_kv());
            // The rotation of early positions may depend on how many follow: then a window goes in as one piece.
            let step = if engine.config().rope.depends_on_length() { window.len() } else { LOGIT_ROWS };
            for (tokens, hidden) in window.chunks(step.max(1)).zip(hidden.chunks(step.max(1) * width)) {
                let step = Step { sequence: &mut sequence, tokens, want: Want::All };
                engine.forward(&mut [step], &mut workspace)?;
                let parent = self.logits.of(hidden);
                for (what, logits) in [("parent", &parent[..]), ("quantized model", workspace.logits())] {
                    if logits.par_iter().any(|logit| !logit.is_finite()) {
                        return Err(CompressError::NotFinite { what: format!("a logit of the {what}") });
                    }
                }
                let rows = parent.par_chunks(vocab).zip(workspace.logits().par_chunks(vocab));
                let values: Vec<f64> = rows.map(|(parent, model)| kl_divergence(self.cpu, parent, model)).collect();
                sum += values.iter().sum::<f64>();
            }
        }
        Ok(sum / self.tokens().max(1) as f64)
    }
}
