//! EXAONE 4 (LG AI Research 2025, arXiv:2507.11407).
//! Baseline: OLMo 2. Norms of each query and key head; where there are windows, layers without one do not rotate.

use super::{Arch, BiasRule, Defaults, WindowRule, olmo2::OLMO2};
use crate::{AttentionBias, LayerRope, NormKind, QkNorm, Style};

pub(super) const EXAONE4: Arch = Arch {
    name: "exaone4",
    hf_name: "Exaone4ForCausalLM",
    hf_model_type: "exaone4",
    gguf_name: None,
    style: Style { qk_norm: QkNorm::Head(NormKind::Rms), ..OLMO2.style },
    attention_bias: BiasRule::Always(AttentionBias::None),
    window: WindowRule::AllButEach(4),
    defaults: Defaults { sliding_window: None, ..OLMO2.defaults },
    read_hf: |_, config| {
        if config.layers.iter().any(|layer| layer.sliding_window.is_some()) {
            let whole = config.layers.iter_mut().filter(|layer| layer.sliding_window.is_none());
            whole.for_each(|layer| layer.rope = LayerRope::None);
        }
        Ok(())
    },
    ..OLMO2
};
