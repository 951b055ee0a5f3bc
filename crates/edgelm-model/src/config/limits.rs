//! Bounds on sizes, checked before anything is allocated by them.
//!
//! They are an order of magnitude above any published model; their product with a few bytes still fits in 64 bits.

use super::{ModelConfig, RopeScaling};

pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_HIDDEN: usize = 1 << 17;
pub(super) const MAX_INTERMEDIATE: usize = 1 << 20;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_HEAD_DIM: usize = 1 << 12;
pub(super) const MAX_VOCAB: usize = 1 << 22;
pub(super) const MAX_CONTEXT: usize = 1 << 30;

impl ModelConfig {
    /// The rules that concern several fields at once. The message names the fields.
    pub(super) fn check(&self) -> Result<(), String> {
        for (index, layer) in self.layers.iter().enumerate() {
            let (heads, kv_heads) = (layer.num_attention_heads, layer.num_key_value_heads);
            if heads % kv_heads != 0 {
                return Err(format!(
                    "layer {index}: `num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
                ));
            }
            let width = heads * layer.head_dim;
            if width > MAX_INTERMEDIATE {
                return Err(format!(
                    "layer {index}: `num_attention_heads` × `head_dim` is {width}, more than {MAX_INTERMEDIATE}"
                ));
            }
            if self.rope.rotary_dim > layer.head_dim {
                let (rotary, head_dim) = (self.rope.rotary_dim, layer.head_dim);
                return Err(format!("layer {index}: {rotary} rotary components in a head of {head_dim}"));
            }
        }
        let rotary = self.rope.rotary_dim;
        if rotary % 2 != 0 || rotary == 0 {
            return Err(format!("`head_dim`: the number of rotary components is {rotary}, must be even"));
        }
        if matches!(self.rope.scaling, RopeScaling::Dynamic { .. }) && rotary == 2 {
            return Err("`rope_type` `dynamic` needs more than 2 rotary components".to_owned());
        }
        Ok(())
    }
}
