//! BitNet b1.58 (Ma et al. 2025, arXiv:2504.12285).
//! Baseline: Llama. Norms of what attention and the feed-forward network hand to their last matrices; squared ReLU.

use super::{Arch, Defaults, llama::LLAMA};
use crate::Style;
use edgelm_tensor::Activation;

pub(super) const BITNET: Arch = Arch {
    name: "bitnet",
    hf_name: "BitNetForCausalLM",
    hf_model_type: "bitnet",
    // llama.cpp means an older model by this name, with another activation.
    gguf_name: None,
    style: Style { activation: Activation::Relu2, sub_norms: true, ..LLAMA.style },
    defaults: Defaults { norm_eps: 1e-5, rope_theta: 500_000.0, ..LLAMA.defaults },
    ..LLAMA
};
