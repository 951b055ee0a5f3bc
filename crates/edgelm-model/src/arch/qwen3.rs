//! Qwen3 dense decoders (Qwen3 Technical Report, arXiv:2505.09388).
//! Baseline: Qwen2. Adds RMSNorm on each query and key head, and a head size of its own; biases only on request.

use super::{Arch, BiasRule, Defaults, qwen2::QWEN2};
use crate::{AttentionBias, NormKind, QkNorm, Style};

pub(super) const QWEN3: Arch = Arch {
    name: "qwen3",
    hf_name: "Qwen3ForCausalLM",
    hf_model_type: "qwen3",
    gguf_name: Some("qwen3"),
    style: Style { qk_norm: QkNorm::Head(NormKind::Rms), ..QWEN2.style },
    attention_bias: BiasRule::Key("attention_bias", false, AttentionBias::None, AttentionBias::Qkvo),
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    ..QWEN2
};
