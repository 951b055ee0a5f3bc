//! How much of each layer stays.

use crate::CompressError;
use edgelm_model::LayerConfig;

/// FFN widths that are multiples of this stay so: blocks of the quantized formats have 32 weights, and rows of `down` are as
/// long as the FFN is wide.
pub(crate) const FFN_STEP: usize = 32;

/// What a layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    pub kv_heads: usize,
    pub intermediate: usize,
}

/// What is decided about a layer before the walk comes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerPlan {
    pub widths: Widths,
    /// Which KV heads stay, where that is not left to the walk.
    pub kv_heads: Option<Vec<usize>>,
}

impl Widths {
    pub fn of(layer: &LayerConfig) -> Self {
        Self { kv_heads: layer.num_key_value_heads, intermediate: layer.intermediate_size }
    }

    /// Puts them into a config. Query heads go with their KV head.
    pub fn apply(&self, layer: &mut LayerConfig) {
        layer.num_attention_heads = layer.num_attention_heads / layer.num_key_value_heads * self.kv_heads;
        layer.num_key_value_heads = self.kv_heads;
        layer.intermediate_size = self.intermediate;
    }
}

/// Neighbouring channels that come or go together when widths are shared out.
pub(crate) fn ffn_step(width: usize) -> usize {
    if width.is_multiple_of(FFN_STEP) { FFN_STEP } else { 1 }
}

/// How many of `units` go for a fraction; an error where that is none, or all.
pub(crate) fn units_to_remove(
    what: &'static str,
    fraction: f64,
    units: usize,
    name: &str,
) -> Result<usize, CompressError> {
    let setting = |problem| CompressError::Setting { what, value: fraction.to_string(), problem };
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(setting("must be between 0 and 1".to_owned()));
    }
    match (fraction * units as f64).round() as usize {
        0 => Err(setting(format!("removes none of {units} {name}"))),
        count if count >= units => Err(setting(format!("removes all of {units} {name}"))),
        count => Ok(count),
    }
}

/// Shares out the removal of `total` units: always the cheapest next one of any layer. `losses[layer]` are the costs of the
/// first, second, … unit of that layer to go, never falling; each layer keeps what it has no cost for.
pub(crate) fn share_out(losses: &[Vec<f64>], total: usize) -> Vec<usize> {
    let mut removed = vec![0; losses.len()];
    for _ in 0..total {
        let next = |layer: &usize| losses[*layer].get(removed[*layer]);
        let candidates = (0..losses.len()).filter(|layer| next(layer).is_some());
        let cheapest = candidates.min_by(|a, b| match (next(a), next(b)) {
            (Some(a), Some(b)) => a.total_cmp(b),
            _ => std::cmp::Ordering::Equal,
        });
        let Some(cheapest) = cheapest else { break };
        removed[cheapest] += 1;
    }
    removed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fractions_become_units() {
        assert_eq!(units_to_remove("--heads", 0.25, 4, "KV heads").unwrap(), 1);
        for bad in [0.0, 1.0, -0.5, 2.0, f64::NAN, f64::INFINITY, 0.05, 0.95] {
            let error = units_to_remove("--heads", bad, 4, "KV heads").unwrap_err().to_string();
            assert!(error.starts_with("--heads is"), "{error}");
        }
    }

    #[test]
    fn the_cheapest_units_go_first() {
        let losses = [vec![1.0, 5.0, 9.0], vec![2.0, 3.0], vec![8.0, 8.5]];
        assert_eq!(share_out(&losses, 4), [2, 2, 0]);
        assert_eq!(share_out(&losses, 99), [3, 2, 2]);
    }
}
