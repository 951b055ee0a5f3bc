//! Experts in GGUF files.

use super::{Experts, LayerConfig, ModelConfig, Routing, RoutingScore, gguf_keys::GgufKeys, limits};
use crate::{Arch, ExpertTensor, LayerTensor, ModelError, TensorId};
use edgelm_format::gguf::{Array, Value};

/// How a family's files state experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufExperts {
    /// What llama.cpp computes for the family where the file does not say it.
    pub routing: Routing,
    /// What files may say of it, beside a bias of the selection, which they have or not.
    pub routing_keys: &'static [RoutingKey],
    /// F of experts is `expert_feed_forward_length`, not `feed_forward_length`.
    pub own_width: bool,
    /// The expert for all tokens.
    pub shared: SharedExpert,
    /// So many layers at the start have none, as `leading_dense_block_count` says; without it, or with no experts at all in the
    /// file, files without experts are of another family.
    pub leading_dense: bool,
}

/// A key of GGUF files about the choice of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingKey {
    /// `expert_gating_func`: 1 softmax, 2 sigmoid.
    Score,
    /// `expert_weights_norm`.
    Normalize,
    /// `expert_weights_scale`.
    Scale,
}

/// The expert for all tokens in a family's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedExpert {
    /// There is none.
    None,
    /// Behind a gate, of `expert_shared_feed_forward_length`; without the key of the width of a layer without experts.
    Gated,
    /// Of `expert_shared_feed_forward_length`; without the key there is none.
    Plain,
    /// `expert_shared_count` times as wide as the others.
    Counted,
}

impl GgufExperts {
    /// Files of families whose layers all have experts, and no more to say than how many and how wide.
    pub const fn everywhere(routing: Routing, own_width: bool) -> Self {
        Self { routing, routing_keys: &[], own_width, shared: SharedExpert::None, leading_dense: false }
    }

    /// True if its files can say which of these layers have experts.
    pub(super) fn has_words_for(&self, layers: &[LayerConfig]) -> bool {
        let dense = layers.iter().take_while(|layer| layer.experts.is_none()).count();
        let is_prefix = layers[dense..].iter().all(|layer| layer.experts.is_some());
        dense == 0 && is_prefix || dense == layers.len() || self.leading_dense && is_prefix
    }
}

/// Puts experts into the layers that have them, as the keys say.
pub(super) fn read(keys: &GgufKeys<'_>, arch: &Arch, layers: &mut [LayerConfig]) -> Result<(), ModelError> {
    let Some(kind) = arch.gguf_experts else { return Ok(()) };
    let dense = match kind.leading_dense {
        true => keys.whole("leading_dense_block_count", layers.len())?.unwrap_or(0),
        false => 0,
    };
    let may_have_none = kind.leading_dense || kind.shared == SharedExpert::Plain;
    if may_have_none && keys.whole("expert_count", limits::MAX_EXPERTS)?.unwrap_or(0) == 0 {
        // Converters write their width and number all the same.
        let keys_of_none = [
            "expert_used_count",
            "expert_feed_forward_length",
            "expert_shared_count",
            "expert_shared_feed_forward_length",
        ];
        for key in keys_of_none {
            keys.get(key);
        }
        return Ok(());
    }
    let size = |key: &str, max| keys.required(key, keys.size(key, max));
    let count = size("expert_count", limits::MAX_EXPERTS)?;
    let per_token = size("expert_used_count", limits::MAX_EXPERTS)?;
    if per_token > count {
        return Err(keys.bad("expert_used_count", &format!("there are only {count} experts")));
    }
    let own = keys.per_layer("expert_feed_forward_length", layers.len(), limits::MAX_INTERMEDIATE)?;
    let routing = read_routing(keys, &kind)?;
    let shared = match kind.shared {
        SharedExpert::None => None,
        SharedExpert::Gated | SharedExpert::Plain => {
            keys.whole("expert_shared_feed_forward_length", limits::MAX_INTERMEDIATE)?.filter(|width| *width > 0)
        }
        SharedExpert::Counted => keys.whole("expert_shared_count", limits::MAX_EXPERTS)?.filter(|count| *count > 0),
    };
    for (index, layer) in layers.iter_mut().enumerate().skip(dense) {
        // Before anything is made for so many experts, the file must have a row for each.
        let name = |tensor| arch.gguf_tensor_name(TensorId::Layer(index, tensor));
        let router = name(LayerTensor::Router);
        if keys.tensor_shape(&router).and_then(|shape| shape.first().copied()) != Some(count) {
            return Err(keys.bad("expert_count", &format!("tensor `{router}` does not have so many rows")));
        }
        let whole = layer.intermediate_size;
        layer.intermediate_size = match &own {
            Some(own) => own[index],
            None if kind.own_width => whole / per_token,
            None => whole,
        };
        layer.experts = Some(Experts {
            count,
            per_token,
            intermediate_size: layer.intermediate_size,
            shared: match kind.shared {
                SharedExpert::None => None,
                SharedExpert::Gated => Some(shared.unwrap_or(whole)),
                SharedExpert::Plain => shared,
                SharedExpert::Counted => shared.and_then(|count| count.checked_mul(layer.intermediate_size)),
            },
            shared_gate: kind.shared == SharedExpert::Gated,
            routing: Routing { selection_bias: keys.has_tensor(&name(LayerTensor::SelectionBias)), ..routing },
            bias: keys.has_tensor(&name(LayerTensor::Expert(0, ExpertTensor::UpBias))),
        });
    }
    Ok(())
}

fn read_routing(keys: &GgufKeys<'_>, kind: &GgufExperts) -> Result<Routing, ModelError> {
    let mut routing = kind.routing;
    for key in kind.routing_keys {
        let name = key.name();
        match key {
            RoutingKey::Score => {
                routing.score = match keys.get(name).map(Value::as_u64) {
                    None | Some(Some(0)) => routing.score,
                    Some(Some(1)) => RoutingScore::Softmax,
                    Some(Some(2)) => RoutingScore::Sigmoid,
                    Some(_) => return Err(keys.bad(name, "only 1 (softmax) and 2 (sigmoid) are supported")),
                };
            }
            RoutingKey::Normalize => {
                routing.normalize = match keys.get(name).map(Value::as_bool) {
                    None => routing.normalize,
                    Some(Some(normalize)) => normalize,
                    Some(None) => return Err(keys.bad(name, "must be true or false")),
                };
            }
            RoutingKey::Scale => {
                if let Some(scale) = keys.nonzero(name)? {
                    routing.scale = scale as f32;
                }
            }
        }
    }
    Ok(routing)
}

impl RoutingKey {
    fn name(self) -> &'static str {
        match self {
            Self::Score => "expert_gating_func",
            Self::Normalize => "expert_weights_norm",
            Self::Scale => "expert_weights_scale",
        }
    }

    fn value(self, routing: &Routing) -> Value {
        match self {
            Self::Score => Value::U32(if routing.score == RoutingScore::Sigmoid { 2 } else { 1 }),
            Self::Normalize => Value::Bool(routing.normalize),
            Self::Scale => Value::F32(routing.scale),
        }
    }
}

/// Keys and values for the experts of a model; where it has none, what llama.cpp asks for all the same.
pub(super) fn written(config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let Some(kind) = config.arch.gguf_experts else { return Vec::new() };
    let number = |value: usize| Value::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let mut out = Vec::new();
    if kind.leading_dense {
        let dense = config.layers.iter().take_while(|layer| layer.experts.is_none()).count();
        out.push(("leading_dense_block_count", number(dense)));
    }
    let Some(first) = config.layers.iter().find_map(|layer| layer.experts) else {
        if kind.own_width && kind.leading_dense {
            let width = config.layers.first().map_or(0, |layer| layer.intermediate_size);
            out.push(("expert_feed_forward_length", number(width)));
        }
        if kind.shared == SharedExpert::Counted {
            out.push(("expert_shared_count", number(0)));
        }
        return out;
    };
    out.extend([("expert_count", number(first.count)), ("expert_used_count", number(first.per_token))]);
    if kind.own_width {
        let width = |layer: &LayerConfig| layer.experts.unwrap_or(first).intermediate_size;
        let widths: Vec<u32> =
            config.layers.iter().map(|layer| u32::try_from(width(layer)).unwrap_or(u32::MAX)).collect();
        let same = widths.windows(2).all(|pair| pair[0] == pair[1]);
        let value = if same { number(first.intermediate_size) } else { Value::Array(Array::U32(widths)) };
        out.push(("expert_feed_forward_length", value));
    }
    match kind.shared {
        SharedExpert::None => {}
        SharedExpert::Gated | SharedExpert::Plain => {
            out.extend(first.shared.map(|shared| ("expert_shared_feed_forward_length", number(shared))));
        }
        SharedExpert::Counted => {
            let count = first.shared.unwrap_or(0) / first.intermediate_size.max(1);
            out.push(("expert_shared_count", number(count)));
        }
    }
    out.extend(kind.routing_keys.iter().map(|key| (key.name(), key.value(&first.routing))));
    out
}

/// F of a layer for `feed_forward_length`: where layers at the start have no experts, those with them say theirs elsewhere.
pub(super) fn feed_forward_length(config: &ModelConfig) -> impl Fn(&LayerConfig) -> usize {
    let leading_dense = config.arch.gguf_experts.is_some_and(|kind| kind.leading_dense);
    let dense = config.layers.iter().find(|layer| layer.experts.is_none()).map(|layer| layer.intermediate_size);
    move |layer| match dense.filter(|_| leading_dense && layer.experts.is_some()) {
        Some(dense) => dense,
        None => layer.intermediate_size,
    }
}
