//! Phi-1, Phi-1.5 and Phi-2 (Li et al. 2023, arXiv:2309.05463).
//! Baseline: Llama. Layer norms, both halves of a layer on one norm of the same input, biases everywhere, an ungated
//! feed-forward network, rotation of a part of each head.

use super::{
    Arch, BiasRule, Defaults, MlpBiasRule, Names,
    llama::LLAMA,
    names::{GGUF_QKV, llama_layer},
};
use crate::{AttentionBias, LayerTensor, NormKind, Norms, QkNorm, Residual, RopePairs, Style};
use edgelm_tensor::Activation;

pub(super) const PHI: Arch = Arch {
    name: "phi",
    hf_name: "PhiForCausalLM",
    hf_model_type: "phi",
    gguf_name: Some("phi2"),
    hf_names: Names { output_norm: "final_layernorm", layer, ..LLAMA.hf_names },
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    style: Style {
        norm: NormKind::Layer,
        norms: Norms { ffn: false, ..LLAMA.style.norms },
        residual: Residual::Parallel,
        activation: Activation::GeluTanh,
        gated: false,
        output_bias: true,
        ..LLAMA.style
    },
    attention_bias: BiasRule::Always(AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Always(true),
    defaults: Defaults { norm_eps: 1e-5, partial_rotary_factor: Some(0.5), ..LLAMA.defaults },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    read_hf: |keys, config| {
        if keys.flag("qk_layernorm")? == Some(true) {
            config.style.qk_norm = QkNorm::Head(NormKind::Layer);
        }
        Ok(())
    },
    read_gguf: |keys, config| {
        if keys.has_layer_weight("attn_qkv") {
            config.arch = &FUSED;
        }
        Ok(())
    },
    ..LLAMA
};

/// Files of the first converter, which have queries, keys and values in one tensor.
const FUSED: Arch = Arch { gguf_names: GGUF_QKV, ..PHI };

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        O => "self_attn.dense",
        QNorm => "self_attn.q_layernorm",
        KNorm => "self_attn.k_layernorm",
        Up => "mlp.fc1",
        Down => "mlp.fc2",
        _ => llama_layer(tensor),
    }
}
