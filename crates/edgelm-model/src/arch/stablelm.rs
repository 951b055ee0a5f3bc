//! StableLM 2 (Bellagente et al. 2024, arXiv:2402.17834).
//! Baseline: Llama. Layer norms, rotation of a part of each head, biases on queries, keys and values where asked for.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, Names, llama::LLAMA, names::llama_layer};
use crate::{AttentionBias, LayerTensor, NormKind, QkNorm, Residual, RopePairs, Style};

pub(super) const STABLELM: Arch = Arch {
    name: "stablelm",
    hf_name: "StableLmForCausalLM",
    hf_model_type: "stablelm",
    gguf_name: Some("stablelm"),
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    hf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::QNorm => "self_attn.q_layernorm.norms.{}",
            LayerTensor::KNorm => "self_attn.k_layernorm.norms.{}",
            _ => llama_layer(tensor),
        },
        ..LLAMA.hf_names
    },
    style: Style { norm: NormKind::Layer, ..LLAMA.style },
    attention_bias: BiasRule::Key("use_qkv_bias", false, AttentionBias::None, AttentionBias::Qkv),
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults {
        max_position_embeddings: 4096,
        norm_eps: 1e-5,
        partial_rotary_factor: Some(0.25),
        ..LLAMA.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    read_gguf: |keys, config| {
        // The key is there, but often wrong: llama.cpp goes by the norm.
        keys.get("use_parallel_residual");
        if !keys.has_layer_weight("ffn_norm") {
            config.style.residual = Residual::Parallel;
            config.style.norms.ffn = false;
        }
        if keys.has_layer_weight("attn_q_norm") {
            config.style.qk_norm = QkNorm::OwnHead(NormKind::LayerGain);
        }
        Ok(())
    },
    read_hf: |keys, config| {
        if keys.flag("use_parallel_residual")? == Some(true) {
            config.style.residual = Residual::Parallel;
            config.style.norms.ffn = false;
        }
        if keys.flag("qk_layernorm")? == Some(true) {
            config.style.qk_norm = QkNorm::OwnHead(NormKind::LayerGain);
        }
        Ok(())
    },
    ..LLAMA
};
