//! Persimmon (Adept 2023).
//! Baseline: GPT-NeoX. The halves of a layer one after the other, norms of queries and keys, squared ReLU.

use super::{
    Arch, BiasRule, Defaults, Names,
    gpt_neox::{FUSED, GPT_NEOX},
    llama::LLAMA,
    names::llama_layer,
};
use crate::{AttentionBias, LayerTensor, NormKind, QkNorm, Residual, Style};
use edgelm_tensor::Activation;

pub(super) const PERSIMMON: Arch = Arch {
    name: "persimmon",
    hf_name: "PersimmonForCausalLM",
    hf_model_type: "persimmon",
    gguf_name: None,
    hf_names: Names { output_norm: "final_layernorm", layer, fused: FUSED, ..LLAMA.hf_names },
    style: Style {
        residual: Residual::Sequential,
        qk_norm: QkNorm::Head(NormKind::Layer),
        activation: Activation::Relu2,
        ..GPT_NEOX.style
    },
    attention_bias: BiasRule::Always(AttentionBias::Qkvo),
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    defaults: Defaults {
        max_position_embeddings: 16384,
        rope_theta: 25000.0,
        partial_rotary_factor: Some(0.5),
        ..GPT_NEOX.defaults
    },
    read_hf: |keys, config| {
        if keys.flag("qk_layernorm")? == Some(false) {
            config.style.qk_norm = QkNorm::None;
        }
        Ok(())
    },
    ..GPT_NEOX
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Q | K | V => "self_attn.query_key_value",
        O => "self_attn.dense",
        QNorm => "self_attn.q_layernorm",
        KNorm => "self_attn.k_layernorm",
        Up => "mlp.dense_h_to_4h",
        Down => "mlp.dense_4h_to_h",
        _ => llama_layer(tensor),
    }
}
