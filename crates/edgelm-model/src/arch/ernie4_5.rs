//! ERNIE 4.5, dense (Baidu 2025).
//! Baseline: Helium. One key for all biases.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, helium::HELIUM};
use crate::AttentionBias;

pub(super) const ERNIE4_5: Arch = Arch {
    name: "ernie4_5",
    hf_name: "Ernie4_5ForCausalLM",
    hf_model_type: "ernie4_5",
    gguf_name: Some("ernie4_5"),
    attention_bias: BiasRule::Key("use_bias", false, AttentionBias::None, AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Key("use_bias", false),
    defaults: Defaults {
        max_position_embeddings: 131_072,
        norm_eps: 1e-5,
        rope_theta: 500_000.0,
        tie_word_embeddings: true,
        ..HELIUM.defaults
    },
    gguf_rope_factors: false,
    ..HELIUM
};
