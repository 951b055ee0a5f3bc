//! What became of a model on its way through a recipe.

use super::GateReport;
use crate::{
    QuantizeReport, TensorReport,
    mixed::{ParetoFront, Within},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// One pass.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PassReport {
    /// `quantize` …
    pub kind: String,
    /// For people.
    pub title: String,
    /// Weight files before.
    pub input_bytes: u64,
    /// The file now.
    pub output_bytes: u64,
    /// Weights now.
    pub parameters: u64,
    /// All weights counted.
    pub bits_per_weight: f64,
    /// Of a pass that changes formats, in file order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorReport>,
    /// Of a pass that says more, in its own words.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Of a mixture of formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pareto: Option<ParetoFront>,
    /// Wall time of the run that finished it.
    pub seconds: f64,
    /// Finished in an earlier run.
    #[serde(skip_deserializing)]
    pub resumed: bool,
}

impl PassReport {
    /// What a quantization says, as a pass.
    pub fn of_quantization(
        title: String,
        parameters: u64,
        report: QuantizeReport,
        pareto: Option<ParetoFront>,
    ) -> Self {
        Self {
            kind: "quantize".to_owned(),
            title,
            input_bytes: report.input_bytes,
            output_bytes: report.output_bytes,
            parameters,
            bits_per_weight: report.bits_per_weight,
            tensors: report.tensors,
            notes: report.notes,
            pareto,
            seconds: report.seconds,
            ..Self::default()
        }
    }

    /// The same for a mixture within a limit on its divergence; `details` has what was measured.
    pub fn of_limit(title: String, parameters: u64, max_kl: f64, within: Within) -> Self {
        let Within { report, front, kl_divergence, held_out_tokens, trials } = within;
        let expected = front.chosen.expected_kl;
        let mut pass = Self::of_quantization(title, parameters, report, Some(front));
        pass.notes.push(format!(
            "KL divergence {kl_divergence:.5} measured on {held_out_tokens} held-out tokens (at most {max_kl}); \
             {expected:.5} expected before error feedback; mixtures tried: {}",
            trials.len()
        ));
        let details = [
            ("kl_divergence", json!(kl_divergence)),
            ("held_out_tokens", json!(held_out_tokens)),
            ("trials", json!(trials)),
        ];
        pass.details = details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        pass
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub struct RecipeReport {
    /// In order; those after a failed gate are missing.
    pub passes: Vec<PassReport>,
    /// In order. If one has not passed, nothing was written.
    pub gates: Vec<GateReport>,
    /// Weight files before.
    pub input_bytes: u64,
    /// The file now; `None` after a failed gate.
    pub output_bytes: Option<u64>,
    /// Wall time, of this run.
    pub seconds: f64,
}

impl RecipeReport {
    /// The first gate that did not pass.
    pub fn failed_gate(&self) -> Option<&GateReport> {
        self.gates.iter().find(|gate| !gate.passed)
    }
}
