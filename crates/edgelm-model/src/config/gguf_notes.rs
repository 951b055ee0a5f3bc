//! What llama.cpp does otherwise with a GGUF file that our own reader gets right: a word about each.

use super::{
    GatedNorm, GgufMixer, LayerConfig, LayerRope, Mixer, ModelConfig, RopeScaling, gguf_write::LLAMA_CPP_BETAS,
};
use crate::TensorId;
use edgelm_tensor::Activation;

/// Families whose windows llama.cpp computes.
const WINDOWS: &[&str] = &["cohere2", "gemma2", "gemma3", "gpt-oss", "granite_swa", "olmo2"];

/// Layers of the one EXAONE 4 whose windows llama.cpp computes.
const EXAONE4_LAYERS: usize = 64;

/// Families whose heads must fill the hidden size in llama.cpp.
const HEADS_FILL_HIDDEN: &[&str] = &[
    "bloom",
    "chatglm",
    "cohere2",
    "command-r",
    "exaone4",
    "falcon",
    "gpt2",
    "gptneox",
    "lfm2",
    "lfm2moe",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "phi2",
    "phi3",
    "qwen2",
    "stablelm",
    "starcoder",
    "starcoder2",
];

/// Families that may have a bias on the attention output in llama.cpp.
const OUTPUT_BIAS: &[&str] = &[
    "bloom",
    "ernie4_5",
    "gpt-oss",
    "gpt2",
    "gptneox",
    "granite",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "llama",
    "mistral3",
    "mpt",
    "nemotron",
    "phi2",
    "starcoder",
    "starcoder2",
];

/// Families that may have biases in the feed-forward network in llama.cpp.
const MLP_BIAS: &[&str] = &[
    "bloom",
    "falcon-h1",
    "gpt2",
    "gptneox",
    "granite",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "llama",
    "mistral3",
    "mpt",
    "nemotron",
    "phi2",
    "starcoder",
    "starcoder2",
];

/// Families whose output head is always the embedding in llama.cpp.
const ALWAYS_TIED: &[&str] = &["cohere2", "command-r", "gemma", "gemma2"];

/// Families whose output head is never the embedding in llama.cpp.
const NEVER_TIED: &[&str] = &["gpt-oss", "gptneox", "nemotron", "olmo2", "olmoe", "phi2", "qwen2moe", "stablelm"];

/// ε of the norms inside latent attention, whatever the model's is.
const LATENT_EPS: f32 = 1e-6;

/// Layers of models whose queries llama.cpp takes to be made in one step.
const LITE_LAYERS: [usize; 2] = [26, 27];

impl ModelConfig {
    /// What llama.cpp will do otherwise, or refuse, with a GGUF file of this model. One sentence each.
    pub fn gguf_notes(&self) -> Vec<String> {
        self.gguf_form().notes_as_it_is()
    }

    fn notes_as_it_is(&self) -> Vec<String> {
        let arch = self.arch.gguf_name.unwrap_or(self.arch.name);
        let mut notes = self.rope_notes(arch);
        notes.extend(self.mixer_notes(arch));
        let mut note = |is_true: bool, text: String| {
            if is_true {
                notes.push(text);
            }
        };
        let windows = self.layers.iter().filter_map(|layer| layer.sliding_window).min();
        let computed = WINDOWS.contains(&arch) || arch == "exaone4" && self.layers.len() == EXAONE4_LAYERS;
        if let Some(window) = windows.filter(|window| *window < self.max_position_embeddings) {
            note(
                !computed,
                format!(
                    "sliding window {window}: llama.cpp ignores it for architecture `{arch}` and differs from position {window} on"
                ),
            );
        }
        note(
            windows.is_some() && arch == "exaone4" && !computed,
            "layers without a window: llama.cpp rotates their heads unless there are 64 layers".to_owned(),
        );
        note(
            self.widths_differ(),
            format!("layers of different widths: llama.cpp does not load them for architecture `{arch}`"),
        );
        let wide = |layer: &LayerConfig| layer.num_attention_heads * layer.head_dim != self.hidden_size;
        note(
            HEADS_FILL_HIDDEN.contains(&arch) && self.layers.iter().any(wide),
            format!("heads × head size differs from the hidden size: llama.cpp does not load this for `{arch}`"),
        );
        note(
            !OUTPUT_BIAS.contains(&arch) && self.layers.iter().any(|layer| layer.attention_bias.on_output()),
            format!("a bias on the attention output: llama.cpp has no place for it in architecture `{arch}`"),
        );
        note(
            !MLP_BIAS.contains(&arch) && self.layers.iter().any(|layer| layer.mlp_bias),
            format!("biases in the feed-forward network: llama.cpp has no place for them in architecture `{arch}`"),
        );
        note(
            ALWAYS_TIED.contains(&arch) && !self.tie_word_embeddings,
            format!("an output head of its own: llama.cpp has no place for it in architecture `{arch}`"),
        );
        note(
            NEVER_TIED.contains(&arch) && self.tie_word_embeddings,
            format!("the output head is the embedding: llama.cpp wants one of its own in architecture `{arch}`"),
        );
        let has_bias = self.layers.iter().all(|layer| layer.attention_bias.on_output() && layer.mlp_bias);
        note(
            arch == "starcoder2" && !has_bias,
            "no biases: llama.cpp does not load this architecture without them".to_owned(),
        );
        note(
            arch == "olmoe" && self.layers.iter().any(|layer| layer.num_key_value_heads != layer.num_attention_heads),
            "fewer heads of keys than of queries: llama.cpp does not load their norms for `olmoe`".to_owned(),
        );
        note(
            self.style.activation == Activation::Gelu,
            "exact GELU: llama.cpp computes the tanh form, logits differ by some thousandths".to_owned(),
        );
        notes
    }

    fn rope_notes(&self, arch: &str) -> Vec<String> {
        let mut notes = Vec::new();
        match self.rope.scaling {
            RopeScaling::Dynamic { original_max_position_embeddings, .. } => notes.push(format!(
                "dynamic rotary scaling: llama.cpp does not know it and differs beyond {original_max_position_embeddings} positions"
            )),
            RopeScaling::LongRope { original_max_position_embeddings, .. } => notes.push(format!(
                "longrope: llama.cpp takes the factors for long inputs where its context is above {original_max_position_embeddings}, however long the input is"
            )),
            RopeScaling::Yarn { beta_fast, beta_slow, truncate, .. }
                if ((beta_fast, beta_slow) != LLAMA_CPP_BETAS || !truncate) && !self.needs_factors() =>
            {
                notes.push(format!(
                    "YaRN with beta_fast {beta_fast}, beta_slow {beta_slow}, truncate {truncate}: llama.cpp computes 32, 1, true for architecture `{arch}`"
                ));
            }
            _ => {}
        }
        let is_partial = self.rope.rotary_dim != self.layers.first().map_or(0, |layer| layer.head_dim);
        let is_partial = is_partial && self.arch.gguf_mixer != GgufMixer::Latent;
        let may_be_partial = self.arch.defaults.partial_rotary_factor.is_some() || self.style.has_no_rotation();
        if is_partial && !may_be_partial {
            notes.push("partial rotary embedding: llama.cpp does not load this architecture with it".to_owned());
        }
        if self.has(TensorId::Layer(0, crate::LayerTensor::QNorm)) && arch == "command-r" && self.layers.len() < 64 {
            notes.push("norms of queries and keys: llama.cpp loads them from 64 layers on".to_owned());
        }
        notes
    }

    fn mixer_notes(&self, arch: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |is_true: bool, text: String| {
            if is_true {
                notes.push(text);
            }
        };
        let others = self.layers.iter().find(|layer| layer.mixer != Mixer::Attention);
        match others.map(|layer| layer.mixer) {
            Some(Mixer::LatentAttention(latent)) => {
                note(
                    self.norm_eps != LATENT_EPS,
                    format!(
                        "norms inside latent attention have ε {LATENT_EPS:e}: llama.cpp takes {:e} for all",
                        self.norm_eps
                    ),
                );
                let one_step = latent.query_rank.is_none();
                note(
                    one_step && (arch != "deepseek2" || !LITE_LAYERS.contains(&self.layers.len())),
                    format!(
                        "queries made in one step: llama.cpp loads them for deepseek2 with {LITE_LAYERS:?} layers only"
                    ),
                );
            }
            Some(Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(mamba)) => {
                note(
                    mamba.in_bias || mamba.out_bias,
                    "biases of the projections around Mamba-2: llama.cpp has no place for them".to_owned(),
                );
                note(!mamba.conv_bias, "a convolution without bias: llama.cpp cannot run it in Mamba-2".to_owned());
                note(
                    mamba.norm == GatedNorm::None && arch != "falcon-h1",
                    "Mamba-2 without a norm: llama.cpp does not load it".to_owned(),
                );
                note(
                    arch == "granitehybrid" && mamba.width() != 2 * self.hidden_size,
                    "Mamba-2 that is not twice as wide as the model: llama.cpp does not load it".to_owned(),
                );
            }
            Some(Mixer::DeltaNet(net)) => note(
                net.key_dim != net.value_dim,
                "heads of values and of keys that differ in width, in gated delta nets: llama.cpp does not load them"
                    .to_owned(),
            ),
            _ => {}
        }
        note(
            arch == "granitemoe" && self.layers.iter().all(|layer| layer.rope == LayerRope::None),
            "no rotation of queries and keys: llama.cpp rotates them for architecture `granitemoe`".to_owned(),
        );
        let mut experts = self.layers.iter().filter_map(|layer| layer.experts);
        note(
            arch == "lfm2moe" && experts.any(|experts| !experts.routing.selection_bias),
            "no bias of the choice of experts: llama.cpp does not load `lfm2moe` without it".to_owned(),
        );
        notes
    }

    fn has(&self, id: TensorId) -> bool {
        self.tensor_shape(id).is_some()
    }
}
