//! What GGUF files say of layers that are not attention alone.
//!
//! The one thing a reader would get wrong: where such layers stand is in another key for each family: heads of keys that are
//! 0, a list of booleans, an interval; or nowhere, because the family has them in every layer.

use super::{
    Decay, DeltaNet, GatedNorm, LatentAttention, LayerConfig, Mamba2, Mixer, ModelConfig, RopeConfig, RopeScaling,
    ShortConv, ValueOrder,
    gguf_keys::GgufKeys,
    limits::{MAX_HEAD_DIM, MAX_HEADS, MAX_INTERMEDIATE, MAX_KERNEL},
};
use crate::{Arch, LayerTensor, ModelError, TensorId};
use edgelm_format::gguf::{Array, Value};

/// What stands in the layers of a family's files, in the place of attention or beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufMixer {
    /// Attention.
    Attention,
    /// [`Mixer::ShortConv`] in layers without heads of keys.
    ShortConv,
    /// [`Mixer::Mamba2`] in layers without heads of keys.
    Mamba2,
    /// [`Mixer::Mamba2`] everywhere: there are no heads at all.
    OnlyMamba2,
    /// [`Mixer::AttentionAndMamba2`] everywhere.
    BesideMamba2,
    /// [`Mixer::LatentAttention`] everywhere.
    Latent,
    /// [`Mixer::DeltaNet`] where a key says so.
    DeltaNet(ValueOrder),
}

impl GgufMixer {
    /// Layers without attention are those without heads of keys.
    pub(super) fn is_by_heads(self) -> bool {
        matches!(self, Self::ShortConv | Self::Mamba2 | Self::OnlyMamba2)
    }

    /// What a file says for the heads of keys of a layer.
    fn kv_heads(self, layer: &LayerConfig) -> usize {
        if self.is_by_heads() && !layer.mixer.has_attention() { 0 } else { layer.num_key_value_heads }
    }
}

/// Puts mixers into the layers, which have attention so far; of a layer without heads of keys it says 0.
pub(super) fn read(
    keys: &GgufKeys<'_>,
    arch: &Arch,
    hidden_size: usize,
    layers: &mut [LayerConfig],
) -> Result<(), ModelError> {
    match arch.gguf_mixer {
        GgufMixer::Attention => {}
        GgufMixer::ShortConv => {
            let kernel = keys.required("shortconv.l_cache", keys.size("shortconv.l_cache", MAX_KERNEL))?;
            let conv = ShortConv { channels: hidden_size, kernel, bias: false };
            put_where_headless(layers, Mixer::ShortConv(conv));
        }
        GgufMixer::Mamba2 => {
            if let Some(first) = layers.iter().position(|layer| layer.num_key_value_heads == 0) {
                put_where_headless(layers, Mixer::Mamba2(read_mamba2(keys, arch, first)?));
            }
        }
        GgufMixer::OnlyMamba2 => put_where_headless(layers, Mixer::Mamba2(read_mamba2(keys, arch, 0)?)),
        GgufMixer::BesideMamba2 => {
            let mamba = read_mamba2(keys, arch, 0)?;
            layers.iter_mut().for_each(|layer| layer.mixer = Mixer::AttentionAndMamba2(mamba));
        }
        GgufMixer::Latent => read_latent(keys, hidden_size, layers)?,
        GgufMixer::DeltaNet(order) => read_delta_nets(keys, order, layers)?,
    }
    Ok(())
}

/// Layers without heads of keys get `mixer`, and the number of heads that others have: nobody reads it.
fn put_where_headless(layers: &mut [LayerConfig], mixer: Mixer) {
    let most = layers.iter().map(|layer| layer.num_key_value_heads).max().unwrap_or(1).max(1);
    for layer in layers.iter_mut().filter(|layer| layer.num_key_value_heads == 0) {
        (layer.mixer, layer.num_key_value_heads) = (mixer, most);
    }
}

/// The `ssm.*` keys; what has a bias or a norm is known by layer `first`, which has this mixer.
fn read_mamba2(keys: &GgufKeys<'_>, arch: &Arch, first: usize) -> Result<Mamba2, ModelError> {
    let size = |key: &str, max| keys.required(key, keys.size(key, max));
    let heads = size("ssm.time_step_rank", MAX_HEADS)?;
    let width = size("ssm.inner_size", MAX_INTERMEDIATE)?;
    if !width.is_multiple_of(heads) {
        return Err(keys.bad("ssm.inner_size", &format!("{heads} heads cannot share it evenly")));
    }
    let has = |tensor| keys.has_tensor(&arch.gguf_tensor_name(TensorId::Layer(first, tensor)));
    Ok(Mamba2 {
        heads,
        head_dim: width / heads,
        groups: keys.size("ssm.group_count", MAX_HEADS)?.unwrap_or(1),
        state_size: size("ssm.state_size", MAX_HEAD_DIM)?,
        kernel: size("ssm.conv_kernel", MAX_KERNEL)?,
        conv_bias: has(LayerTensor::ConvBias),
        in_bias: has(LayerTensor::MixerInBias),
        out_bias: has(LayerTensor::MixerOutBias),
        norm: if has(LayerTensor::MixerNorm) { GatedNorm::AfterGate } else { GatedNorm::None },
        time_step_limit: (0.0, f32::INFINITY),
        input_scale: 1.0,
        scales: [1.0; 5],
        output_scale: 1.0,
        decay: Decay::Whole,
    })
}

/// Two kinds of files: with what makes keys and what makes values apart, and, older or of MiniCPM3, with both in one tensor;
/// then sizes of heads are those before anything is absorbed.
fn read_latent(keys: &GgufKeys<'_>, hidden_size: usize, layers: &mut [LayerConfig]) -> Result<(), ModelError> {
    let size = |key: &str, max| keys.required(key, keys.size(key, max));
    let heads = layers.first().map_or(1, |layer| layer.num_attention_heads);
    let rank = size("attention.kv_lora_rank", MAX_HEAD_DIM)?;
    let query_rank = match keys.get("attention.q_lora_rank").and_then(Value::as_u64) {
        Some(0) => None,
        _ => keys.size("attention.q_lora_rank", MAX_INTERMEDIATE)?,
    };
    let rope_dim = size("rope.dimension_count", MAX_HEAD_DIM)?;
    let whole = keys.size("attention.key_length_mla", MAX_HEAD_DIM)?;
    let (key_length, value_length) = (
        keys.size("attention.key_length", MAX_HEAD_DIM)?,
        keys.size("attention.value_length", MAX_HEAD_DIM)?.unwrap_or(hidden_size / heads),
    );
    let (query_dim, value_dim) = match whole {
        Some(query_dim) => {
            if key_length.is_some_and(|length| length != rank + rope_dim) {
                return Err(keys.bad("attention.key_length", &format!("must be {rank} + {rope_dim}")));
            }
            (query_dim, size("attention.value_length_mla", MAX_HEAD_DIM)?)
        }
        None => (keys.required("attention.key_length", Ok(key_length))?, value_length),
    };
    let Some(nope_dim) = query_dim.checked_sub(rope_dim).filter(|nope| *nope > 0) else {
        return Err(keys.bad("rope.dimension_count", &format!("must be less than the {query_dim} of a query")));
    };
    let transposed_keys = whole.is_some();
    let latent = LatentAttention { heads, query_rank, rank, nope_dim, rope_dim, value_dim, transposed_keys };
    for layer in layers {
        if layer.num_attention_heads != heads {
            return Err(keys.bad("attention.head_count", "must be the same in all layers with latent attention"));
        }
        layer.mixer = Mixer::LatentAttention(latent);
        (layer.num_key_value_heads, layer.head_dim) = (1, latent.width());
    }
    Ok(())
}

fn read_delta_nets(keys: &GgufKeys<'_>, order: ValueOrder, layers: &mut [LayerConfig]) -> Result<(), ModelError> {
    let size = |key: &str, max| keys.required(key, keys.size(key, max));
    let value_heads = size("ssm.time_step_rank", MAX_HEADS)?;
    let width = size("ssm.inner_size", MAX_INTERMEDIATE)?;
    if !width.is_multiple_of(value_heads) {
        return Err(keys.bad("ssm.inner_size", &format!("{value_heads} heads cannot share it evenly")));
    }
    let key_heads = size("ssm.group_count", MAX_HEADS)?;
    let net = DeltaNet {
        key_heads,
        key_dim: size("ssm.state_size", MAX_HEAD_DIM)?,
        value_heads,
        value_dim: width / value_heads,
        kernel: size("ssm.conv_kernel", MAX_KERNEL)?,
        decay: Decay::Whole,
        order: if value_heads == key_heads { ValueOrder::Grouped } else { order },
    };
    let interval = keys.size("full_attention_interval", MAX_HEADS)?.unwrap_or(4);
    let is_recurrent: Vec<bool> = match keys.get("attention.recurrent_layers") {
        None => (1..=layers.len()).map(|number| !number.is_multiple_of(interval)).collect(),
        Some(Value::Array(Array::Bool(list))) if list.len() == layers.len() => list.clone(),
        Some(_) => {
            return Err(keys.bad("attention.recurrent_layers", &format!("must hold {} booleans", layers.len())));
        }
    };
    for (layer, _) in layers.iter_mut().zip(is_recurrent).filter(|(_, is_recurrent)| *is_recurrent) {
        layer.mixer = Mixer::DeltaNet(net);
    }
    Ok(())
}

/// Keys and values beside those that every family has.
pub(super) fn written(config: &ModelConfig) -> Result<Vec<(&'static str, Value)>, ModelError> {
    let refuse = |what: &str| Err(ModelError::Export(what.to_owned()));
    let mut mixers = config.layers.iter().map(|layer| layer.mixer).filter(|mixer| *mixer != Mixer::Attention);
    let Some(first) = mixers.next() else { return Ok(Vec::new()) };
    if mixers.any(|mixer| mixer != first) {
        return refuse("GGUF has one kind of layers beside those with attention, this model several");
    }
    Ok(match (first, config.arch.gguf_mixer) {
        (Mixer::ShortConv(conv), GgufMixer::ShortConv) if conv.bias => {
            return refuse("GGUF has no biases of short convolutions");
        }
        (Mixer::ShortConv(conv), GgufMixer::ShortConv) => vec![("shortconv.l_cache", number(conv.kernel))],
        (Mixer::Mamba2(mamba), GgufMixer::Mamba2 | GgufMixer::OnlyMamba2)
        | (Mixer::AttentionAndMamba2(mamba), GgufMixer::BesideMamba2) => vec![
            ("ssm.conv_kernel", number(mamba.kernel)),
            ("ssm.inner_size", number(mamba.width())),
            ("ssm.state_size", number(mamba.state_size)),
            ("ssm.time_step_rank", number(mamba.heads)),
            ("ssm.group_count", number(mamba.groups)),
        ],
        (Mixer::LatentAttention(latent), GgufMixer::Latent) => latent_keys(config, &latent),
        (Mixer::DeltaNet(net), GgufMixer::DeltaNet(_)) => {
            let is_recurrent = config.layers.iter().map(|layer| !layer.mixer.has_attention()).collect();
            vec![
                ("ssm.conv_kernel", number(net.kernel)),
                ("ssm.inner_size", number(net.value_width())),
                ("ssm.state_size", number(net.key_dim)),
                ("ssm.time_step_rank", number(net.value_heads)),
                ("ssm.group_count", number(net.key_heads)),
                ("attention.recurrent_layers", Value::Array(Array::Bool(is_recurrent))),
            ]
        }
        _ => return refuse("layers of this kind have no form in GGUF files of this architecture"),
    })
}

fn latent_keys(config: &ModelConfig, latent: &LatentAttention) -> Vec<(&'static str, Value)> {
    let mut out = vec![("attention.kv_lora_rank", number(latent.rank))];
    out.extend(latent.query_rank.map(|rank| ("attention.q_lora_rank", number(rank))));
    if latent.transposed_keys {
        out.push(("attention.key_length", number(latent.width())));
        out.push(("attention.value_length", number(latent.rank)));
        out.push(("attention.key_length_mla", number(latent.query_dim())));
        out.push(("attention.value_length_mla", number(latent.value_dim)));
    } else {
        out.push(("attention.key_length", number(latent.query_dim())));
        out.push(("attention.value_length", number(latent.value_dim)));
    }
    if let Some(multiplier) = log_multiplier(config, latent) {
        out.push(("rope.scaling.yarn_log_multiplier", Value::F32((multiplier / 10.0) as f32)));
    }
    out
}

/// Heads of keys of every layer, as a file says them.
pub(super) fn kv_heads(config: &ModelConfig) -> impl Fn(&LayerConfig) -> usize {
    let mixer = config.arch.gguf_mixer;
    let latent = config.layers.first().and_then(|layer| match layer.mixer {
        Mixer::LatentAttention(latent) if !latent.transposed_keys => Some(latent.heads),
        _ => None,
    });
    move |layer| latent.unwrap_or_else(|| mixer.kv_heads(layer))
}

/// m of YaRN on scores of latent attention. With factor f of the scaling and a of rotated components, llama.cpp multiplies
/// scores by (a (1 + 0.1 m ln f))². `None` where m is 0; then it takes a for 1 + 0.1 ln f unless told otherwise.
fn log_multiplier(config: &ModelConfig, latent: &LatentAttention) -> Option<f64> {
    let RopeScaling::Yarn { factor, attention_factor, .. } = config.rope.scaling else { return None };
    let scale = f64::from(config.style.attention_scale?) * (latent.query_dim() as f64).sqrt();
    let growth = (scale.max(0.0).sqrt() / attention_factor - 1.0) / (0.1 * factor.ln());
    (growth.is_finite() && growth.abs() > 1e-6).then_some(growth)
}

/// What YaRN multiplies rotated components by, beside what the file's own factor says, for latent attention with m as
/// [`log_multiplier`] has it.
pub(super) fn latent_attention_factor(log_multiplier: Option<f64>, factor: f64) -> f64 {
    if log_multiplier.is_some() || factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * factor.ln() }
}

/// The same as a file of this model has to state it.
pub(super) fn latent_factor_beside(config: &ModelConfig) -> Option<f64> {
    let Some(Mixer::LatentAttention(latent)) = config.layers.first().map(|layer| layer.mixer) else { return None };
    let RopeScaling::Yarn { factor, .. } = config.rope.scaling else { return None };
    Some(latent_attention_factor(log_multiplier(config, &latent), factor))
}

/// What multiplies the scores of latent attention.
pub(super) fn latent_scale(
    keys: &GgufKeys<'_>,
    layers: &[LayerConfig],
    rope: &RopeConfig,
) -> Result<Option<f32>, ModelError> {
    let Some(Mixer::LatentAttention(latent)) = layers.first().map(|layer| layer.mixer) else { return Ok(None) };
    let growth = match rope.scaling {
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            let log = keys.nonzero("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) * 10.0;
            attention_factor * (1.0 + 0.1 * log * factor.max(1.0).ln())
        }
        _ => 1.0,
    };
    let scale = (growth * growth / (latent.query_dim() as f64).sqrt()) as f32;
    match scale.is_finite() && scale > 0.0 {
        true => Ok(Some(scale)),
        false => Err(keys.bad("rope.scaling.yarn_log_multiplier", "makes no finite factor above 0")),
    }
}

/// Sizes are bounded far below `u32::MAX` when a config is read.
fn number(value: usize) -> Value {
    Value::U32(u32::try_from(value).unwrap_or(u32::MAX))
}
