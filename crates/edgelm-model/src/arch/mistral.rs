//! Mistral decoders (Jiang et al. 2023, arXiv:2310.06825).
//! Baseline: Llama. Adds a sliding window in every layer; has no biases.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, WindowRule, llama::LLAMA};
use crate::AttentionBias;

pub(super) const MISTRAL: Arch = Arch {
    name: "mistral",
    hf_name: "MistralForCausalLM",
    hf_model_type: "mistral",
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    window: WindowRule::EveryLayer,
    defaults: Defaults { max_position_embeddings: 131_072, sliding_window: Some(4096), ..LLAMA.defaults },
    ..LLAMA
};
