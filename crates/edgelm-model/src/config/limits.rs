//! Bounds on sizes, checked before anything is allocated by them.
//!
//! They are an order of magnitude above any published model; their product with a few bytes still fits in 64 bits.

use super::{LayerConfig, LayerRope, Mixer, ModelConfig, RopeConfig, RopeScaling};

pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(crate) const MAX_HIDDEN: usize = 1 << 17;
/// Numbers of experts fit in 16 bits.
pub(crate) const MAX_EXPERTS: usize = 1 << 14;
pub(crate) const MAX_INTERMEDIATE: usize = 1 << 20;
pub(crate) const MAX_HEADS: usize = 1 << 12;
pub(crate) const MAX_HEAD_DIM: usize = 1 << 12;
/// Taps of a convolution over positions.
pub(crate) const MAX_KERNEL: usize = 1 << 8;
/// Values that a sequence keeps for a layer beside keys and values.
const MAX_STATE: u64 = 1 << 26;
pub(super) const MAX_VOCAB: usize = 1 << 22;
pub(crate) const MAX_CONTEXT: usize = 1 << 30;
/// Where a rotary base stops to be a number anyone meant.
const MAX_THETA: f64 = 1e15;
/// Scaling factors, betas and frequency factors: wide enough for any use, narrow enough that no frequency is infinite.
const ROPE_RANGE: std::ops::RangeInclusive<f64> = 1e-6..=1e9;

impl ModelConfig {
    /// The rules that concern several fields at once. The message names the fields.
    pub(super) fn check(&self) -> Result<(), String> {
        for (index, layer) in self.layers.iter().enumerate() {
            check_mixer(&layer.mixer).map_err(|what| format!("layer {index}: {what}"))?;
            if !layer.mixer.has_attention() {
                continue;
            }
            let (heads, kv_heads) = (layer.num_attention_heads, layer.num_key_value_heads);
            if !heads.is_multiple_of(kv_heads) {
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
            if layer.rope != LayerRope::None && self.rope.rotary_dim > layer.head_dim {
                let (rotary, head_dim) = (self.rope.rotary_dim, layer.head_dim);
                return Err(format!("layer {index}: {rotary} rotary components in a head of {head_dim}"));
            }
        }
        // Where no layer rotates, what the keys say of it has no meaning.
        let rotates = |layer: &LayerConfig| layer.rope != LayerRope::None && layer.mixer.has_attention();
        if self.layers.iter().any(rotates) {
            for rope in std::iter::once(&self.rope).chain(&self.local_rope) {
                check_rope(rope)?;
            }
        }
        Ok(())
    }
}

fn check_mixer(mixer: &Mixer) -> Result<(), String> {
    let (heads, groups, width, state) = match mixer {
        Mixer::Attention | Mixer::ShortConv(_) => return Ok(()),
        Mixer::LatentAttention(latent) => {
            let (heads, widest) = (latent.heads, latent.query_dim().max(latent.nope_dim + latent.value_dim));
            if heads * widest > MAX_INTERMEDIATE {
                return Err(format!("{heads} heads of {widest} components are more than {MAX_INTERMEDIATE}"));
            }
            return Ok(());
        }
        Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(mamba) => {
            (mamba.heads, mamba.groups, mamba.channels(), mamba.width() as u64 * mamba.state_size as u64)
        }
        Mixer::DeltaNet(net) => {
            (net.value_heads, net.key_heads, net.channels(), net.value_width() as u64 * net.key_dim as u64)
        }
    };
    if !heads.is_multiple_of(groups) {
        return Err(format!("{heads} heads cannot share {groups} groups of keys evenly"));
    }
    if width > MAX_INTERMEDIATE {
        return Err(format!("a convolution of {width} channels, more than {MAX_INTERMEDIATE}"));
    }
    if state > MAX_STATE {
        return Err(format!("a state of {state} values, more than {MAX_STATE}"));
    }
    Ok(())
}

fn check_rope(rope: &RopeConfig) -> Result<(), String> {
    let rotary = rope.rotary_dim;
    if !rotary.is_multiple_of(2) || rotary == 0 {
        return Err(format!("`head_dim`: the number of rotary components is {rotary}, must be even"));
    }
    let theta = rope.theta;
    if !(theta > 1.0 && theta <= MAX_THETA) {
        return Err(format!("`rope_theta` is `{theta}`: must be above 1 and at most {MAX_THETA:e}"));
    }
    if let Some((name, value)) = rope_numbers(&rope.scaling).find(|(_, value)| !ROPE_RANGE.contains(value)) {
        let (low, high) = (ROPE_RANGE.start(), ROPE_RANGE.end());
        return Err(format!("rotary scaling: `{name}` is `{value:e}`: must be from {low:e} to {high:e}"));
    }
    if matches!(rope.scaling, RopeScaling::Dynamic { .. }) && rotary == 2 {
        return Err("`rope_type` `dynamic` needs more than 2 rotary components".to_owned());
    }
    if let RopeScaling::LongRope { short, long, .. } = &rope.scaling
        && (short.len() != rotary / 2 || long.len() != rotary / 2)
    {
        return Err(format!("`short_factor` and `long_factor` must hold {} numbers", rotary / 2));
    }
    Ok(())
}

/// The numbers of a scaling scheme and their names.
fn rope_numbers(scaling: &RopeScaling) -> impl Iterator<Item = (&'static str, f64)> {
    let named = match scaling {
        RopeScaling::Default => vec![],
        RopeScaling::Linear { factor }
        | RopeScaling::Dynamic { factor, .. }
        | RopeScaling::Proportional { factor, .. } => vec![("factor", *factor)],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
            vec![("factor", *factor), ("low_freq_factor", *low_freq_factor), ("high_freq_factor", *high_freq_factor)]
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, .. } => vec![
            ("factor", *factor),
            ("beta_fast", *beta_fast),
            ("beta_slow", *beta_slow),
            ("attention_factor", *attention_factor),
        ],
        RopeScaling::LongRope { short, long, attention_factor, .. } => {
            let short = short.iter().map(|&factor| ("short_factor", factor));
            let long = long.iter().map(|&factor| ("long_factor", factor));
            short.chain(long).chain([("attention_factor", *attention_factor)]).collect()
        }
        RopeScaling::Factors { attention_factor, .. } => vec![("attention_factor", *attention_factor)],
    };
    named.into_iter()
}
