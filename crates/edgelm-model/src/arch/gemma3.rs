//! Gemma 3, text (Gemma Team 2025, arXiv:2503.19786).
//! Baseline: Gemma 2. Norms of queries and keys in place of soft caps; windows in five of six layers, with a rotary base
//! of their own.

use super::{
    Arch, Defaults, WindowRule,
    gemma2::{GEMMA2, read_scales},
};
use crate::config::StyleKey;
use crate::{NormKind, QkNorm, Style};

pub(super) const GEMMA3: Arch = Arch {
    name: "gemma3",
    hf_name: "Gemma3ForCausalLM",
    hf_model_type: "gemma3_text",
    gguf_name: Some("gemma3"),
    harmless: &["_sliding_window_pattern"],
    style: Style { qk_norm: QkNorm::Head(NormKind::RmsPlusOne), ..GEMMA2.style },
    window: WindowRule::AllButEach(6),
    defaults: Defaults {
        max_position_embeddings: 131_072,
        rope_theta: 1e6,
        local_rope_theta: Some(10000.0),
        ..GEMMA2.defaults
    },
    gguf_keys: &[StyleKey::LogitSoftcap],
    read_gguf: |_, config| {
        read_scales(config, LARGEST_LAYERS);
        Ok(())
    },
    ..GEMMA2
};

/// Layers of the 27B model.
const LARGEST_LAYERS: usize = 62;
