//! Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024, arXiv:2404.14219; 2025, arXiv:2503.01743).
//! Baseline: Mistral. Queries, keys and values in one tensor, gate and up in another; rotation with factors for long inputs.

use super::{
    Arch, Defaults, Names, Order,
    llama::LLAMA,
    mistral::MISTRAL,
    names::{GGUF, gguf_layer, llama_layer},
};
use crate::{LayerTensor, RopePairs};

pub(super) const PHI3: Arch = Arch {
    name: "phi3",
    hf_name: "Phi3ForCausalLM",
    hf_model_type: "phi3",
    gguf_name: Some("phi3"),
    hf_names: Names { layer, fused: FUSED, ..LLAMA.hf_names },
    gguf_names: Names { layer: gguf, fused: FUSED, ..GGUF },
    defaults: Defaults {
        max_position_embeddings: 4096,
        norm_eps: 1e-5,
        partial_rotary_factor: Some(1.0),
        sliding_window: None,
        ..MISTRAL.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    gguf_long_factors: true,
    ..MISTRAL
};

const FUSED: &[(&[LayerTensor], Order)] = &[
    (&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::Stacked),
    (&[LayerTensor::Gate, LayerTensor::Up], Order::Stacked),
];

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        Q | K | V => "self_attn.qkv_proj",
        Gate | Up => "mlp.gate_up_proj",
        _ => llama_layer(tensor),
    }
}

fn gguf(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        Q | K | V => "attn_qkv",
        Gate | Up => "ffn_up",
        _ => gguf_layer(tensor),
    }
}
