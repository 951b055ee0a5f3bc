//! Ministral 3 (Mistral AI 2025).
//! Baseline: Mistral. Queries grow with the logarithm of their position (see [`crate::config::QueryGrowth`]).

use super::{Arch, Defaults, mistral::MISTRAL};
use crate::config::StyleKey;

pub(super) const MINISTRAL3: Arch = Arch {
    name: "ministral3",
    hf_name: "Ministral3ForCausalLM",
    hf_model_type: "ministral3",
    gguf_name: Some("mistral3"),
    defaults: Defaults { norm_eps: 1e-5, rope_theta: 1e6, sliding_window: None, ..MISTRAL.defaults },
    gguf_keys: &[StyleKey::QueryGrowth],
    ..MISTRAL
};
