//! Granite with sliding windows (IBM 2026).
//! Baseline: Granite. Windows in three of four layers, attention sinks, a rotary base per layer (0: none).

use super::{
    Arch, Defaults, WindowRule,
    granite::{GRANITE, read_factors},
};
use crate::config::{Keys, MAX_CONTEXT, RopeConfig, StyleKey};
use crate::{LayerRope, ModelConfig, ModelError, Style};

pub(super) const GRANITE_SWA: Arch = Arch {
    name: "granite_swa",
    hf_name: "GraniteSWAForCausalLM",
    hf_model_type: "granite_swa",
    gguf_name: Some("granite_swa"),
    gguf_keys: &[
        StyleKey::AttentionScale,
        StyleKey::EmbeddingScale,
        StyleKey::ResidualScale,
        StyleKey::LogitDivisor,
        StyleKey::RopePattern,
    ],
    style: Style { sinks: true, ..GRANITE.style },
    window: WindowRule::AllButEach(EACH),
    defaults: Defaults {
        max_position_embeddings: 8192,
        sliding_window: Some(128),
        tie_word_embeddings: true,
        norm_eps: 1e-5,
        ..GRANITE.defaults
    },
    read_hf: |keys, config| {
        read_factors(keys, config)?;
        if !keys.has("layer_types") {
            let window = keys.size("sliding_window", MAX_CONTEXT)?.or(GRANITE_SWA.defaults.sliding_window);
            for (index, layer) in config.layers.iter_mut().enumerate() {
                layer.sliding_window = window.filter(|_| !index.is_multiple_of(EACH));
            }
        }
        read_bases(keys, config)
    },
    ..GRANITE
};

/// Each so many layers one has no window, the first among them.
const EACH: usize = 4;

/// `layer_rope_theta`: two bases at most, beside 0.
fn read_bases(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    const KEY: &str = "layer_rope_theta";
    let Some(bases) = keys.numbers(KEY)? else { return Ok(()) };
    if bases.len() != config.layers.len() || bases.iter().any(|base| *base < 0.0) {
        return Err(keys.bad(KEY, &format!("must have one base per layer ({})", config.layers.len())));
    }
    let mut different: Vec<f64> = Vec::new();
    for (layer, &base) in config.layers.iter_mut().zip(&bases) {
        if base > 0.0 && !different.contains(&base) {
            different.push(base);
        }
        layer.rope = match different.iter().position(|known| *known == base) {
            None => LayerRope::None,
            Some(0) => LayerRope::Global,
            Some(_) => LayerRope::Local,
        };
    }
    match different[..] {
        [] => {}
        [theta] => config.rope.theta = theta,
        [global, local] => {
            config.rope.theta = global;
            config.local_rope = Some(RopeConfig { theta: local, ..config.rope.clone() });
        }
        _ => return Err(keys.bad(KEY, "only two different bases are supported")),
    }
    Ok(())
}
