//! EXAONE 4 (LG AI Research 2025, arXiv:2507.11407).
//! Baseline: OLMo 2. Norms of each query and key head; where there are windows, layers without one do not rotate.

use super::{Arch, BiasRule, Defaults, WindowRule, cohere2::rotate_only_windows, olmo2::OLMO2};
use crate::{AttentionBias, ModelConfig, NormKind, QkNorm, Style};

pub(super) const EXAONE4: Arch = Arch {
    name: "exaone4",
    hf_name: "Exaone4ForCausalLM",
    hf_model_type: "exaone4",
    gguf_name: Some("exaone4"),
    style: Style { qk_norm: QkNorm::Head(NormKind::Rms), ..OLMO2.style },
    attention_bias: BiasRule::Always(AttentionBias::None),
    window: WindowRule::AllButEach(4),
    defaults: Defaults { sliding_window: None, ..OLMO2.defaults },
    gguf_rope_factors: true,
    read_gguf: |_, config| {
        rotate(config);
        Ok(())
    },
    read_hf: |_, config| {
        rotate(config);
        Ok(())
    },
    ..OLMO2
};

fn rotate(config: &mut ModelConfig) {
    if config.layers.iter().any(|layer| layer.sliding_window.is_some()) {
        rotate_only_windows(config);
    }
}
