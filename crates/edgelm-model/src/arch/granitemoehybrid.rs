//! Granite 4 (IBM 2025).
//! Baseline: Granite 3 MoE. Mamba-2 in most layers; a shared expert beside the others, or alone.

use super::{
    Arch, Names,
    granite::{GRANITE, read_factors},
    granitemoe::GRANITEMOE,
    mixers,
    names::llama_layer,
};
use crate::config::{GgufExperts, GgufMixer, Keys, MAX_INTERMEDIATE, Mixer, Routing, SharedExpert};
use crate::{ExpertTensor, LayerRope, LayerTensor, ModelConfig, ModelError, arch::experts};
use serde_json::Value;

pub(super) const GRANITEMOEHYBRID: Arch = Arch {
    name: "granitemoehybrid",
    hf_name: "GraniteMoeHybridForCausalLM",
    hf_model_type: "granitemoehybrid",
    gguf_name: Some("granitehybrid"),
    gguf_experts: Some(GgufExperts {
        shared: SharedExpert::Plain,
        ..GgufExperts::everywhere(Routing::softmax(true), false)
    }),
    gguf_mixer: GgufMixer::Mamba2,
    gguf_form: |config| {
        // Without Mamba-2 these are files of Granite 3.
        if config.layers.iter().all(|layer| layer.mixer == Mixer::Attention) {
            let has_experts = config.layers.iter().any(|layer| layer.experts.is_some());
            config.arch = if has_experts { &GRANITEMOE } else { &GRANITE };
        }
    },
    hf_names: Names { layer, ..GRANITEMOE.hf_names },
    aliases: &[("num_experts", "num_local_experts"), ("layer_types", "layers_block_type")],
    only: &[("normalization_function", "\"rmsnorm\"")],
    harmless: &["init_method", "output_router_logits", "router_aux_loss_coef"],
    own_layer_types: &["linear_attention", "mamba"],
    read_hf: |keys, config| {
        read_factors(keys, config)?;
        let mamba = mixers::read_mamba2(keys, config)?;
        let own = mixers::own_layers(keys, config, |_| true)?;
        let rope = match keys.text("position_embedding_type")? {
            Some("rope") => LayerRope::Global,
            None | Some("nope") => LayerRope::None,
            Some(_) => return Err(keys.bad("position_embedding_type", "only `rope` and `nope` are supported")),
        };
        for (layer, own) in config.layers.iter_mut().zip(own) {
            layer.mixer = if own { Mixer::Mamba2(mamba) } else { Mixer::Attention };
            layer.rope = rope;
        }
        read_experts(keys, config)
    },
    ..GRANITEMOE
};

/// With `num_local_experts` 0 what is otherwise shared is the whole feed-forward network.
fn read_experts(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let shared = keys.required_size("shared_intermediate_size", MAX_INTERMEDIATE)?;
    if keys.get("num_experts").and_then(Value::as_u64) == Some(0) {
        keys.get("num_experts_per_tok");
        config.layers.iter_mut().for_each(|layer| layer.intermediate_size = shared);
        return Ok(());
    }
    experts::read(keys, config, Routing::softmax(true))?;
    config.layers.iter_mut().filter_map(|layer| layer.experts.as_mut()).for_each(|experts| {
        experts.shared = Some(shared);
    });
    Ok(())
}

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Gate | Up | SharedGate | SharedUp => "shared_mlp.input_linear",
        Down | SharedDown => "shared_mlp.output_linear",
        Router => "block_sparse_moe.router.layer",
        Expert(_, ExpertTensor::Down) => "block_sparse_moe.output_linear",
        Expert(..) => "block_sparse_moe.input_linear",
        _ => llama_layer(tensor),
    }
}
