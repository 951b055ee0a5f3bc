//! GLM-4-9B (GLM Team 2024, arXiv:2406.12793).
//! Baseline: Llama. Gate and up in one tensor; half of each head rotates, in interleaved pairs.

use super::{
    Arch, BiasRule, Defaults, MlpBiasRule, Names, Order,
    llama::LLAMA,
    names::{GGUF, gguf_layer, llama_layer},
    phi3::PHI3,
};
use crate::{AttentionBias, LayerTensor, RopePairs};

pub(super) const GLM: Arch = Arch {
    name: "glm",
    hf_name: "GlmForCausalLM",
    hf_model_type: "glm",
    gguf_name: Some("chatglm"),
    gguf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::Gate | LayerTensor::Up => "ffn_up",
            _ => gguf_layer(tensor),
        },
        fused: &[(&[LayerTensor::Gate, LayerTensor::Up], Order::Stacked)],
        ..GGUF
    },
    read_gguf: |keys, config| {
        if keys.has_layer_weight("attn_qkv") {
            config.arch = &FUSED;
        }
        Ok(())
    },
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

/// Files made of the model's first form, which has queries, keys and values in one tensor too.
const FUSED: Arch = Arch { gguf_names: PHI3.gguf_names, ..GLM };

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        Gate | Up => "mlp.gate_up_proj",
        PostFfnNorm => "post_mlp_layernorm",
        _ => llama_layer(tensor),
    }
}
