//! Nemotron-4 and Minitron (Parmar et al. 2024, arXiv:2402.16819).
//! Baseline: Llama. Layer norms with gains stored less 1, squared ReLU without a gate, half of each head rotates.

use super::{Arch, Defaults, llama::LLAMA};
use crate::{NormKind, RopePairs, Style};
use edgelm_tensor::Activation;

pub(super) const NEMOTRON: Arch = Arch {
    name: "nemotron",
    hf_name: "NemotronForCausalLM",
    hf_model_type: "nemotron",
    gguf_name: Some("nemotron"),
    aliases: &[("rms_norm_eps", "norm_eps")],
    style: Style { norm: NormKind::LayerPlusOne, activation: Activation::Relu2, gated: false, ..LLAMA.style },
    defaults: Defaults {
        max_position_embeddings: 4096,
        norm_eps: 1e-5,
        partial_rotary_factor: Some(0.5),
        ..LLAMA.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    ..LLAMA
};
