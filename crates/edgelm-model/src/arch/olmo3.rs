//! OLMo 3 (OLMo Team 2025).
//! Baseline: OLMo 2. A window in three of four layers.

use super::{Arch, Defaults, WindowRule, olmo2::OLMO2};

pub(super) const OLMO3: Arch = Arch {
    name: "olmo3",
    hf_name: "Olmo3ForCausalLM",
    hf_model_type: "olmo3",
    gguf_name: Some("olmo2"),
    window: WindowRule::AllButEach(4),
    defaults: Defaults { sliding_window: Some(4096), ..OLMO2.defaults },
    ..OLMO2
};
