//! `kind = "prune"`: layers, heads, channels or single weights taken out.

use super::{Fraction, Gates, Job, PassReport, Settings};
use crate::{
    CompressError, OnTensor,
    prune::{Allocation, HiddenBasis, Pattern, PruneCalibration, PruneMethod, PruneOptions, Score, Sparsity, prune},
};
use serde::{Deserialize, Serialize};

/// Its keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunePass {
    /// Layers to leave out.
    #[serde(default)]
    pub layers: usize,
    /// Part of each layer's KV heads, with the query heads that read them.
    pub heads: Option<Fraction>,
    /// Part of each layer's FFN channels.
    pub ffn: Option<Fraction>,
    /// Part of the hidden size; by itself.
    pub hidden: Option<Fraction>,
    /// What is kept of it.
    pub basis: Option<HiddenBasis>,
    /// Part of zeros in the linear layers.
    pub sparsity: Option<Fraction>,
    /// Where they may stand.
    pub pattern: Option<String>,
    /// How what goes is chosen.
    #[serde(default)]
    pub method: PruneMethod,
    /// What layers and heads are chosen by.
    pub score: Option<Score>,
    /// Where heads and channels go.
    pub allocation: Option<Allocation>,
    /// Part of the mean diagonal of H that is added to it.
    pub damping: Option<f32>,
    /// After this pass. Not part of what it does.
    #[serde(skip_serializing)]
    pub gates: Option<Gates>,
}

impl PrunePass {
    fn sparsity(&self) -> Result<Option<Sparsity>, CompressError> {
        let pattern = self.pattern.as_deref().map(str::parse::<Pattern>).transpose()?;
        match (self.sparsity, pattern) {
            (None, None) => Ok(None),
            (fraction, pattern) => {
                let fraction = fraction.map(|fraction| fraction.0);
                Sparsity::new(fraction, pattern.unwrap_or(Pattern::Unstructured)).map(Some)
            }
        }
    }
}

impl Settings for PrunePass {
    fn check(&self) -> Result<(), String> {
        let sparsity = self.sparsity().map_err(|error| error.to_string())?;
        let others = self.layers > 0 || self.heads.is_some() || self.ffn.is_some() || sparsity.is_some();
        match (others, self.hidden) {
            (false, None) => {
                return Err("needs one of `layers`, `heads`, `ffn`, `hidden`, `sparsity` and `pattern`".to_owned());
            }
            (true, Some(_)) => return Err("`hidden` takes no other kind beside it; make two passes".to_owned()),
            _ => {}
        }
        if self.basis.is_some() && self.hidden.is_none() {
            return Err("`basis` belongs to `hidden`".to_owned());
        }
        for (key, value) in [("heads", self.heads), ("ffn", self.ffn), ("hidden", self.hidden)] {
            if let Some(Fraction(part)) = value
                && !(part > 0.0 && part < 1.0)
            {
                return Err(format!("`{key}` is {part}: must be more than 0 and less than 1"));
            }
        }
        match self.damping {
            Some(damping) if !(damping.is_finite() && damping >= 0.0) => {
                Err(format!("`damping` is {damping}: must be 0 or more"))
            }
            _ => Ok(()),
        }
    }

    fn gates(&self) -> Option<&Gates> {
        self.gates.as_ref()
    }

    fn gates_mut(&mut self) -> Option<&mut Gates> {
        self.gates.as_mut()
    }

    fn calibration_for(&self) -> Option<&'static str> {
        match self.method {
            PruneMethod::Magnitude if self.layers > 0 => Some("layers"),
            PruneMethod::Magnitude if self.hidden.is_some() => Some("hidden"),
            PruneMethod::Magnitude if self.allocation == Some(Allocation::Global) => Some("allocation"),
            PruneMethod::Magnitude => None,
            PruneMethod::Wanda => Some("wanda"),
            PruneMethod::SparseGpt => Some("sparsegpt"),
            PruneMethod::Alps => Some("alps"),
        }
    }

    fn uses_calibration(&self) -> bool {
        true
    }

    fn title(&self) -> String {
        let mut parts = Vec::new();
        parts.extend((self.layers > 0).then(|| format!("{} layers", self.layers)));
        parts.extend(self.heads.map(|part| format!("{part} of heads")));
        parts.extend(self.ffn.map(|part| format!("{part} of channels")));
        parts.extend(self.hidden.map(|part| format!("{part} of the hidden size")));
        parts.extend(self.sparsity.map(|part| format!("{part} of weights")));
        parts.extend(self.pattern.clone());
        format!("prune {}", parts.join(", "))
    }

    fn run(&self, job: &Job<'_>, on_step: &mut OnTensor<'_>) -> Result<PassReport, CompressError> {
        let windows = &job.calibration.windows[..];
        let defaults = PruneOptions::default();
        let options = PruneOptions {
            layers: self.layers,
            score: self.score.unwrap_or(defaults.score),
            heads: self.heads.map(|part| part.0),
            ffn: self.ffn.map(|part| part.0),
            allocation: self.allocation.unwrap_or(Allocation::usual(!windows.is_empty())),
            hidden: self.hidden.map(|part| part.0),
            hidden_basis: self.basis,
            sparsity: self.sparsity()?,
            method: self.method,
            damping: self.damping.unwrap_or(defaults.damping),
            calibration: (!windows.is_empty()).then_some(PruneCalibration { cpu: job.cpu, windows }),
        };
        let report = prune(job.checkpoint, job.output, &options, on_step)?;
        let details = [
            ("parameters_before", serde_json::json!(report.parameters_before)),
            ("nonzero_parameters", serde_json::json!(report.nonzero_parameters)),
            ("sparsity", serde_json::json!(report.sparsity)),
            ("layers_removed", serde_json::json!(report.layers_removed)),
            ("layers", serde_json::json!(report.layers)),
            ("hidden", serde_json::json!(report.hidden)),
        ];
        Ok(PassReport {
            title: self.title(),
            input_bytes: report.input_bytes,
            output_bytes: report.output_bytes,
            parameters: report.parameters_after,
            bits_per_weight: 8.0 * report.output_bytes as f64 / report.parameters_after.max(1) as f64,
            details: details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            notes: report.notes,
            seconds: report.seconds,
            ..PassReport::default()
        })
    }
}
