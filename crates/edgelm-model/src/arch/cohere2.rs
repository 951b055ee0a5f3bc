//! Command R7B (Cohere 2024).
//! Baseline: Command R. A window in three of four layers; the others do not rotate.

use super::{Arch, Defaults, WindowRule, cohere::COHERE};
use crate::{LayerRope, ModelConfig};

pub(super) const COHERE2: Arch = Arch {
    name: "cohere2",
    hf_name: "Cohere2ForCausalLM",
    hf_model_type: "cohere2",
    gguf_name: Some("cohere2"),
    only: &[("use_qk_norm", "false")],
    harmless: &[
        "_sliding_window_pattern",
        "cache_implementation",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
        "layer_switch",
    ],
    window: WindowRule::AllButEach(4),
    defaults: Defaults { sliding_window: Some(4096), ..COHERE.defaults },
    read_gguf: |_, config| {
        rotate_only_windows(config);
        Ok(())
    },
    read_hf: |keys, config| {
        config.style.logit_scale = keys.positive("logit_scale")?.unwrap_or(0.0625) as f32;
        rotate_only_windows(config);
        Ok(())
    },
    ..COHERE
};

/// Layers that see everything have no rotation.
pub(super) fn rotate_only_windows(config: &mut ModelConfig) {
    let whole = config.layers.iter_mut().filter(|layer| layer.sliding_window.is_none());
    whole.for_each(|layer| layer.rope = LayerRope::None);
}
