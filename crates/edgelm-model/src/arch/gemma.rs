//! Gemma (Gemma Team 2024, arXiv:2403.08295).
//! Baseline: Llama. Norm gains are stored less 1, embeddings are scaled by the root of their width, tanh-GELU gates.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, llama::LLAMA};
use crate::config::Keys;
use crate::{AttentionBias, ModelConfig, ModelError, NormKind, RopePairs, Style};
use edgelm_tensor::Activation;

pub(super) const GEMMA: Arch = Arch {
    name: "gemma",
    hf_name: "GemmaForCausalLM",
    hf_model_type: "gemma",
    gguf_name: Some("gemma"),
    only: &[("use_bidirectional_attention", "false")],
    style: Style { norm: NormKind::RmsPlusOne, activation: Activation::GeluTanh, ..LLAMA.style },
    attention_bias: BiasRule::Key("attention_bias", false, AttentionBias::None, AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults {
        head_dim: Some(256),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        ..LLAMA.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    read_gguf: |_, config| {
        config.style.embedding_scale = (config.hidden_size as f32).sqrt();
        Ok(())
    },
    read_hf: read_scale,
    ..LLAMA
};

/// Embeddings times √D. `hidden_act` of the first configs says `gelu` and means the tanh form.
pub(super) fn read_scale(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    if keys.text("hidden_activation")?.is_none() {
        config.style.activation = Activation::GeluTanh;
    }
    config.style.embedding_scale = (config.hidden_size as f32).sqrt();
    Ok(())
}
