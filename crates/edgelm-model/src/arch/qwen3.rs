//! Qwen3 dense decoders (Qwen3 Technical Report, arXiv:2505.09388).
//! Baseline: Qwen2. Adds RMSNorm on each query and key head, and a head size of its own; biases only on request.

use super::{Arch, BiasRule, Defaults, qwen2::QWEN2};
use crate::AttentionBias;

pub(super) const QWEN3: Arch = Arch {
    name: "qwen3",
    hf_name: "Qwen3ForCausalLM",
    hf_model_type: "qwen3",
    gguf_name: "qwen3",
    qk_norm: true,
    attention_bias: BiasRule::Key(AttentionBias::Qkvo),
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    ..QWEN2
};
