//! Qwen1.5, Qwen2 and Qwen2.5 dense decoders (arXiv:2407.10671, arXiv:2412.15115).
//! Baseline: Llama. Biases on Q, K and V always; a sliding window in the upper layers where the config asks for it.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, WindowRule, llama::LLAMA};
use crate::{AttentionBias, RopePairs};

pub(super) const QWEN2: Arch = Arch {
    name: "qwen2",
    hf_name: "Qwen2ForCausalLM",
    hf_model_type: "qwen2",
    gguf_name: Some("qwen2"),
    attention_bias: BiasRule::Always(AttentionBias::Qkv),
    mlp_bias: MlpBiasRule::Always(false),
    window: WindowRule::SomeLayers,
    defaults: Defaults {
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        max_window_layers: 28,
        ..LLAMA.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    ..LLAMA
};
