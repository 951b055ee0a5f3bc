//! Apertus (Swiss AI 2025, arXiv:2509.14233).
//! Baseline: Llama. Norms of each query and key head; an ungated feed-forward network with xIELU.

use super::{Arch, Defaults, MlpBiasRule, Names, llama::LLAMA, names::llama_layer};
use crate::{LayerTensor, NormKind, QkNorm, Style};

pub(super) const APERTUS: Arch = Arch {
    name: "apertus",
    hf_name: "ApertusForCausalLM",
    hf_model_type: "apertus",
    // llama.cpp has the numbers of xIELU among the metadata.
    gguf_name: None,
    hf_names: Names { layer, ..LLAMA.hf_names },
    style: Style { qk_norm: QkNorm::Head(NormKind::Rms), gated: false, xielu: true, ..LLAMA.style },
    mlp_bias: MlpBiasRule::Key("mlp_bias", false),
    defaults: Defaults { max_position_embeddings: 65_536, norm_eps: 1e-5, rope_theta: 12_000_000.0, ..LLAMA.defaults },
    ..LLAMA
};

fn layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::AttnNorm => "attention_layernorm",
        LayerTensor::FfnNorm => "feedforward_layernorm",
        _ => llama_layer(tensor),
    }
}
