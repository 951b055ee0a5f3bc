//! Arcee AFM (Arcee AI 2025).
//! Baseline: Llama. Squared ReLU without a gate.

use super::{Arch, llama::LLAMA};
use crate::Style;
use edgelm_tensor::Activation;

pub(super) const ARCEE: Arch = Arch {
    name: "arcee",
    hf_name: "ArceeForCausalLM",
    hf_model_type: "arcee",
    gguf_name: Some("arcee"),
    style: Style { activation: Activation::Relu2, gated: false, ..LLAMA.style },
    ..LLAMA
};
