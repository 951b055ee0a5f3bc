//! Keys of config.json about layers that are not attention, as several families have them.

use crate::config::{
    Decay, DeltaNet, GatedNorm, Keys, MAX_HEAD_DIM, MAX_HEADS, MAX_INTERMEDIATE, MAX_KERNEL, Mamba2, Mixer, ShortConv,
    ValueOrder,
};
use crate::{ModelConfig, ModelError};
use serde_json::Value;

/// Keys about training, and about how a scan is cut into parts.
const HARMLESS: [&str; 6] =
    ["chunk_size", "mamba_chunk_size", "time_step_floor", "time_step_max", "time_step_min", "time_step_rank"];

/// True for the layers that `layer_types` calls by a name of the family's own; without that key, as `default` says.
pub(super) fn own_layers(
    keys: &mut Keys<'_>,
    config: &ModelConfig,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let own = config.arch.own_layer_types;
    let types = keys.texts("layer_types")?;
    Ok(match types.is_empty() {
        true => (0..config.layers.len()).map(default).collect(),
        false => types.iter().map(|name| own.contains(name)).collect(),
    })
}

/// Every n-th layer has attention, the others do not: true for those. n is `full_attention_interval`, or else 4.
fn all_but_each(keys: &mut Keys<'_>) -> Result<impl Fn(usize) -> bool + use<>, ModelError> {
    let interval = keys.size("full_attention_interval", MAX_HEADS)?.unwrap_or(4);
    Ok(move |index: usize| !(index + 1).is_multiple_of(interval))
}

/// The `mamba_*` keys, by those names or by what the family's aliases make of them.
pub(super) fn read_mamba2(keys: &mut Keys<'_>, config: &ModelConfig) -> Result<Mamba2, ModelError> {
    for key in HARMLESS {
        keys.get(key);
    }
    let heads = keys.required_size("mamba_n_heads", MAX_HEADS)?;
    let expand = keys.size("mamba_expand", MAX_HEAD_DIM)?.unwrap_or(2);
    let width = match keys.size("mamba_d_ssm", MAX_INTERMEDIATE)? {
        Some(width) => width,
        None => config.hidden_size * expand,
    };
    let head_dim = match keys.get("mamba_d_head").and_then(Value::as_str) {
        Some("auto") => width / heads,
        _ => keys.size("mamba_d_head", MAX_HEAD_DIM)?.unwrap_or(width / heads),
    };
    if heads * head_dim != width {
        return Err(keys.bad("mamba_n_heads", &format!("times {head_dim} components is not {width}")));
    }
    Ok(Mamba2 {
        heads,
        head_dim,
        groups: keys.size("mamba_n_groups", MAX_HEADS)?.unwrap_or(1),
        state_size: keys.required_size("mamba_d_state", MAX_HEAD_DIM)?,
        kernel: keys.size("mamba_d_conv", MAX_KERNEL)?.unwrap_or(4),
        conv_bias: keys.flag("mamba_conv_bias")?.unwrap_or(true),
        in_bias: keys.flag("mamba_proj_bias")?.unwrap_or(false),
        out_bias: keys.flag("mamba_proj_bias")?.unwrap_or(false),
        norm: GatedNorm::AfterGate,
        time_step_limit: read_limit(keys)?,
        input_scale: 1.0,
        scales: [1.0; 5],
        output_scale: 1.0,
        decay: Decay::Log,
    })
}

/// `time_step_limit`: two numbers, of which the second is infinite where there is no limit. transformers 4 writes a bare
/// `Infinity`, 5 an object with its name.
fn read_limit(keys: &mut Keys<'_>) -> Result<(f32, f32), ModelError> {
    const KEY: &str = "time_step_limit";
    let number = |value: &Value| {
        let name = value.as_str().or_else(|| value.get("__float__")?.as_str());
        if name == Some("Infinity") { Some(f32::INFINITY) } else { value.as_f64().map(|number| number as f32) }
    };
    let Some(value) = keys.get(KEY) else { return Ok((0.0, f32::INFINITY)) };
    match value.as_array().map(|list| list.iter().map(number).collect::<Option<Vec<_>>>()) {
        Some(Some(limits)) if limits.len() == 2 && 0.0 <= limits[0] && limits[0] <= limits[1] => {
            Ok((limits[0], limits[1]))
        }
        _ => Err(keys.bad(KEY, "must be two numbers, neither negative, in order")),
    }
}

/// Which layers have a convolution, and how many taps.
pub(super) fn read_short_convolutions(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let channels = config.hidden_size;
    let kernel = keys.size("conv_L_cache", MAX_KERNEL)?.unwrap_or(3);
    let bias = keys.flag("conv_bias")?.unwrap_or(false);
    let attention: Option<Vec<Value>> = keys.get("full_attn_idxs").and_then(Value::as_array).cloned();
    let is_conv = |index: usize| attention.as_ref().is_some_and(|list| !list.contains(&Value::from(index)));
    let own = own_layers(keys, config, is_conv)?;
    for (layer, _) in config.layers.iter_mut().zip(own).filter(|(_, own)| *own) {
        layer.mixer = Mixer::ShortConv(ShortConv { channels, kernel, bias });
    }
    Ok(())
}

/// The `linear_*` keys, and which layers they are about.
pub(super) fn read_delta_nets(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let net = DeltaNet {
        key_heads: keys.required_size("linear_num_key_heads", MAX_HEADS)?,
        key_dim: keys.required_size("linear_key_head_dim", MAX_HEAD_DIM)?,
        value_heads: keys.required_size("linear_num_value_heads", MAX_HEADS)?,
        value_dim: keys.required_size("linear_value_head_dim", MAX_HEAD_DIM)?,
        kernel: keys.size("linear_conv_kernel_dim", MAX_KERNEL)?.unwrap_or(4),
        decay: Decay::Log,
        order: ValueOrder::Grouped,
    };
    let default = all_but_each(keys)?;
    let own = own_layers(keys, config, default)?;
    for (layer, _) in config.layers.iter_mut().zip(own).filter(|(_, own)| *own) {
        layer.mixer = Mixer::DeltaNet(net);
    }
    Ok(())
}
