//! Experts in GGUF files.

use super::{Experts, LayerConfig, ModelConfig, Routing, gguf_keys::GgufKeys, limits};
use crate::{Arch, ExpertTensor, LayerTensor, ModelError, TensorId};
use edgelm_format::gguf::{Array, Value};

/// How a family's files state experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufExperts {
    /// Not in the file: llama.cpp computes it so for the whole family.
    pub routing: Routing,
    /// F of experts is `expert_feed_forward_length`, not `feed_forward_length`.
    pub own_width: bool,
    /// There is an expert for all tokens behind a gate, of `expert_shared_feed_forward_length`.
    pub shared: bool,
}

/// Puts experts into every layer, as the keys say.
pub(super) fn read(keys: &GgufKeys<'_>, arch: &Arch, layers: &mut [LayerConfig]) -> Result<(), ModelError> {
    let Some(kind) = arch.gguf_experts else { return Ok(()) };
    let size = |key: &str, max| keys.required(key, keys.size(key, max));
    let count = size("expert_count", limits::MAX_EXPERTS)?;
    let per_token = size("expert_used_count", limits::MAX_EXPERTS)?;
    if per_token > count {
        return Err(keys.bad("expert_used_count", &format!("there are only {count} experts")));
    }
    let own = keys.per_layer("expert_feed_forward_length", layers.len(), limits::MAX_INTERMEDIATE)?;
    let shared = match kind.shared {
        // Without the key llama.cpp takes the width of a layer without experts.
        true => keys.size("expert_shared_feed_forward_length", limits::MAX_INTERMEDIATE)?,
        false => None,
    };
    for (index, layer) in layers.iter_mut().enumerate() {
        // Before anything is made for so many experts, the file must have a row for each.
        let router = arch.gguf_tensor_name(TensorId::Layer(index, LayerTensor::Router));
        if keys.tensor_shape(&router).and_then(|shape| shape.first().copied()) != Some(count) {
            return Err(keys.bad("expert_count", &format!("tensor `{router}` does not have so many rows")));
        }
        let whole = layer.intermediate_size;
        layer.intermediate_size = match &own {
            Some(own) => own[index],
            None if kind.own_width => whole / per_token,
            None => whole,
        };
        let bias = TensorId::Layer(index, LayerTensor::Expert(0, ExpertTensor::UpBias));
        layer.experts = Some(Experts {
            count,
            per_token,
            intermediate_size: layer.intermediate_size,
            shared: kind.shared.then(|| shared.unwrap_or(whole)),
            shared_gate: kind.shared,
            routing: kind.routing,
            bias: keys.has_tensor(&arch.gguf_tensor_name(bias)),
        });
    }
    Ok(())
}

/// Keys and values for the experts of a model, none where it has none.
pub(super) fn written(config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let Some(kind) = config.arch.gguf_experts else { return Vec::new() };
    let Some(first) = config.layers.iter().find_map(|layer| layer.experts) else { return Vec::new() };
    let number = |value: usize| Value::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let mut out = vec![("expert_count", number(first.count)), ("expert_used_count", number(first.per_token))];
    if kind.own_width {
        let widths: Vec<u32> =
            config.layers.iter().map(|layer| u32::try_from(layer.intermediate_size).unwrap_or(u32::MAX)).collect();
        let same = widths.windows(2).all(|pair| pair[0] == pair[1]);
        let value = if same { number(first.intermediate_size) } else { Value::Array(Array::U32(widths)) };
        out.push(("expert_feed_forward_length", value));
    }
    if let Some(shared) = first.shared.filter(|_| kind.shared) {
        out.push(("expert_shared_feed_forward_length", number(shared)));
    }
    out
}
