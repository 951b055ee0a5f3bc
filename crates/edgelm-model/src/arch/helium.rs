//! Helium 1 (Kyutai 2025).
//! Baseline: Llama. Interleaved pairs.

use super::{Arch, BiasRule, Defaults, llama::LLAMA};
use crate::{AttentionBias, RopePairs};

pub(super) const HELIUM: Arch = Arch {
    name: "helium",
    hf_name: "HeliumForCausalLM",
    hf_model_type: "helium",
    gguf_name: None,
    attention_bias: BiasRule::Key("attention_bias", false, AttentionBias::None, AttentionBias::Qkv),
    defaults: Defaults {
        head_dim: Some(128),
        max_position_embeddings: 4096,
        norm_eps: 1e-8,
        rope_theta: 100_000.0,
        ..LLAMA.defaults
    },
    hf_rope_pairs: RopePairs::Interleaved,
    ..LLAMA
};
