//! SmolLM3 (Hugging Face 2025).
//! Baseline: Qwen2. Some layers do not rotate.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, qwen2::QWEN2};
use crate::{AttentionBias, LayerRope, RopePairs};

pub(super) const SMOLLM3: Arch = Arch {
    name: "smollm3",
    hf_name: "SmolLM3ForCausalLM",
    hf_model_type: "smollm3",
    gguf_name: Some("smollm3"),
    attention_bias: BiasRule::Key("attention_bias", false, AttentionBias::None, AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Key("mlp_bias", false),
    defaults: Defaults { rope_theta: 2e6, tie_word_embeddings: true, ..QWEN2.defaults },
    gguf_rope_pairs: RopePairs::Interleaved,
    read_gguf: |_, config| {
        for (index, layer) in config.layers.iter_mut().enumerate() {
            layer.rope = if (index + 1).is_multiple_of(EACH) { LayerRope::None } else { LayerRope::Global };
        }
        Ok(())
    },
    read_hf: |keys, config| {
        let each = keys.size("no_rope_layer_interval", 1 << 10)?.unwrap_or(EACH);
        let listed = keys.numbers("no_rope_layers")?;
        let count = config.layers.len();
        if listed.as_ref().is_some_and(|flags| flags.len() != count) {
            return Err(keys.bad("no_rope_layers", &format!("must have one entry per layer ({count})")));
        }
        for (index, layer) in config.layers.iter_mut().enumerate() {
            let rotates = listed.as_ref().map_or(!(index + 1).is_multiple_of(each), |flags| flags[index] != 0.0);
            layer.rope = if rotates { LayerRope::Global } else { LayerRope::None };
        }
        Ok(())
    },
    ..QWEN2
};

/// Each so many layers one does not rotate.
const EACH: usize = 4;
