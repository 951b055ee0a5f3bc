//! Keys of config.json about experts, as most families with them have.

use crate::config::{Experts, Keys, MAX_EXPERTS, MAX_INTERMEDIATE, Routing};
use crate::{ModelConfig, ModelError};
use serde_json::Value;

/// Keys about training or reporting.
pub(super) const HARMLESS: &[&str] =
    &["output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "jitter_noise"];

/// Experts in every layer, by `num_experts` (or what the family's aliases make of it) and `num_experts_per_tok`; F is
/// `moe_intermediate_size` where given, else `intermediate_size`.
pub(super) fn read(keys: &mut Keys<'_>, config: &mut ModelConfig, routing: Routing) -> Result<(), ModelError> {
    let count = keys.required_size("num_experts", MAX_EXPERTS)?;
    let per_token = keys.required_size("num_experts_per_tok", MAX_EXPERTS)?;
    if per_token > count {
        return Err(keys.bad("num_experts_per_tok", &format!("there are only {count} experts")));
    }
    let own = keys.size("moe_intermediate_size", MAX_INTERMEDIATE)?;
    for layer in &mut config.layers {
        let intermediate_size = own.unwrap_or(layer.intermediate_size);
        layer.intermediate_size = intermediate_size;
        layer.experts = Some(Experts {
            count,
            per_token,
            intermediate_size,
            shared: None,
            shared_gate: false,
            routing,
            bias: false,
        });
    }
    Ok(())
}

/// Layers without experts, as Qwen names them: those of `mlp_only_layers`, and all but each `decoder_sparse_step`-th.
pub(super) fn read_dense_layers(
    keys: &mut Keys<'_>,
    config: &mut ModelConfig,
    dense: &[usize],
) -> Result<(), ModelError> {
    let step = keys.size("decoder_sparse_step", MAX_EXPERTS)?.unwrap_or(1);
    let only: Vec<u64> = match keys.get("mlp_only_layers").map(Value::as_array) {
        None => Vec::new(),
        Some(list) => list
            .and_then(|list| list.iter().map(Value::as_u64).collect::<Option<_>>())
            .ok_or_else(|| keys.bad("mlp_only_layers", "must be a list of layers"))?,
    };
    for (index, layer) in config.layers.iter_mut().enumerate() {
        if only.contains(&(index as u64)) || !(index + 1).is_multiple_of(step) {
            layer.experts = None;
            layer.intermediate_size = dense[index];
        }
    }
    Ok(())
}
