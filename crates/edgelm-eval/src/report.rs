//! The figures of an evaluation under the names that scripts read, and the facts of the model they belong to.

use crate::{Divergence, PairScores, Perplexity, TaskScores};
use edgelm_engine::Model;
use edgelm_model::StorageKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything `eval --json` prints; what was not measured is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalReport {
    /// exp(mean negative log-likelihood).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Of the perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_standard_error: Option<f64>,
    /// Tokens that perplexity and divergence are means over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_scored: Option<usize>,
    /// Windows they were in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<usize>,
    /// Tokens per window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Of the parent, on the same windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_perplexity: Option<f64>,
    /// KL(parent || model), mean over positions, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<f64>,
    /// Of the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence_standard_error: Option<f64>,
    /// Median over positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence_median: Option<f64>,
    /// 99th percentile over positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence_p99: Option<f64>,
    /// Worst position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence_max: Option<f64>,
    /// Share of positions with the same most likely token as the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Accuracy by task, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<BTreeMap<String, f64>>,
    /// Lines that the accuracies are means over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_lines: Option<usize>,
    /// Mean F-measure, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
    /// Of the corpus, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bleu4: Option<f64>,
    /// Lines that ROUGE-L and BLEU are over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
}

impl EvalReport {
    /// Takes in the figures of a text.
    pub fn add_perplexity(&mut self, perplexity: &Perplexity) {
        self.perplexity = Some(perplexity.perplexity);
        self.perplexity_standard_error = Some(perplexity.standard_error);
        self.tokens_scored = Some(perplexity.tokens_scored);
        self.windows = Some(perplexity.windows);
        self.context = Some(perplexity.context);
    }

    /// Takes in the figures of a comparison, the model's perplexity among them.
    pub fn add_divergence(&mut self, divergence: &Divergence) {
        self.add_perplexity(&divergence.model);
        self.parent_perplexity = Some(divergence.parent.perplexity);
        self.kl_divergence = Some(divergence.kl.mean);
        self.kl_divergence_standard_error = Some(divergence.kl.standard_error);
        self.kl_divergence_median = Some(divergence.kl.median);
        self.kl_divergence_p99 = Some(divergence.kl.percentile_99);
        self.kl_divergence_max = Some(divergence.kl.max);
        self.top1_agreement = Some(divergence.top1_agreement);
    }

    /// Takes in the figures of a task file.
    pub fn add_tasks(&mut self, scores: &TaskScores) {
        self.tasks = Some(scores.tasks.iter().map(|(name, score)| (name.clone(), score.accuracy())).collect());
        self.task_lines = Some(scores.results.len());
    }

    /// Takes in the figures of a pairs file.
    pub fn add_pairs(&mut self, scores: &PairScores) {
        self.rouge_l = Some(scores.rouge_l);
        self.bleu4 = Some(scores.bleu.score);
        self.pairs = Some(scores.results.len());
    }
}

/// What a report says about the model itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Folder name or file stem.
    pub name: String,
    /// Hugging Face name of the architecture.
    pub architecture: String,
    /// `safetensors` or `gguf`.
    pub storage: String,
    /// Weights.
    pub parameters: u64,
    /// Of the weight files.
    pub file_bytes: u64,
    /// 8 · file_bytes / parameters.
    pub bits_per_weight: f64,
    /// As packed for this machine.
    pub weights_bytes: usize,
    /// Decoder layers.
    pub layers: usize,
    /// V.
    pub vocab_size: usize,
    /// Trained context length.
    pub max_position_embeddings: usize,
    /// Kernel family that the figures were computed with.
    pub isa: String,
}

impl ModelFacts {
    /// Facts of a loaded model.
    pub fn of(model: &Model) -> Self {
        let (engine, checkpoint) = (model.engine(), model.checkpoint());
        let config = engine.config();
        let storage = match checkpoint.storage() {
            StorageKind::Safetensors => "safetensors",
            StorageKind::Gguf => "gguf",
        };
        Self {
            name: model.name().to_owned(),
            architecture: config.arch.hf_name.to_owned(),
            storage: storage.to_owned(),
            parameters: checkpoint.parameters(),
            file_bytes: checkpoint.file_bytes(),
            bits_per_weight: 8.0 * checkpoint.file_bytes() as f64 / checkpoint.parameters().max(1) as f64,
            weights_bytes: engine.weights_bytes(),
            layers: config.layers.len(),
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            isa: engine.cpu().isa().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bleu, TaskScore};

    #[test]
    fn keys_are_those_of_the_contract_and_absent_ones_are_left_out() {
        let mut report = EvalReport::default();
        assert_eq!(serde_json::to_string(&report).expect("JSON"), "{}");
        let perplexity = Perplexity {
            perplexity: 21.5,
            standard_error: 0.25,
            tokens_scored: 2048,
            windows: 2,
            context: 1024,
            first_token: 0,
        };
        report.add_perplexity(&perplexity);
        let tasks = BTreeMap::from([("intent".to_owned(), TaskScore { correct: 3, total: 4 })]);
        report.add_tasks(&TaskScores { tasks, results: Vec::new() });
        let bleu =
            Bleu { score: 40.0, precisions: [0.0; 4], brevity_penalty: 1.0, hypothesis_tokens: 9, reference_tokens: 9 };
        report.add_pairs(&PairScores { rouge_l: 0.5, bleu, results: Vec::new() });
        let json = serde_json::to_value(&report).expect("JSON");
        let want = serde_json::json!({
            "perplexity": 21.5, "perplexity_standard_error": 0.25, "tokens_scored": 2048, "windows": 2, "context": 1024,
            "tasks": {"intent": 0.75}, "task_lines": 0, "rouge_l": 0.5, "bleu4": 40.0, "pairs": 0,
        });
        assert_eq!(json, want);
        assert_eq!(serde_json::from_value::<EvalReport>(json).expect("a report"), report);
    }
}
