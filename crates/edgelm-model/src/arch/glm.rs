//! GLM-4-9B (GLM Team 2024, arXiv:2406.12793).
//! Baseline: Llama. Gate and up in one tensor; half of each head rotates, in interleaved pairs.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, Names, Order, llama::LLAMA, names::llama_layer};
use crate::{AttentionBias, LayerTensor, RopePairs};

pub(super) const GLM: Arch = Arch {
    name: "glm",
    hf_name: "GlmForCausalLM",
    hf_model_type: "glm",
    gguf_name: None,
    hf_names: Names { layer, fused: &[(&[LayerTensor::Gate, LayerTensor::Up], Order::Stacked)], ..LLAMA.hf_names },
    attention_bias: BiasRule::Key("attention_bias", false, AttentionBias::None, AttentionBias::Qkv),
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults {
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        norm_eps: 1.562_5e-7,
        partial_rotary_factor: Some(0.5),
        ..LLAMA.defaults
    },
    hf_rope_pairs: RopePairs::Interleaved,
    gguf_rope_factors: false,
    ..LLAMA
};

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        Gate | Up => "mlp.gate_up_proj",
        PostFfnNorm => "post_mlp_layernorm",
        _ => llama_layer(tensor),
    }
}
