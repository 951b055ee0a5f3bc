//! LFM2-MoE (Liquid AI 2025, arXiv:2511.23404).
//! Baseline: LFM2. Experts in place of the feed-forward network of all but the first layers, chosen by biased sigmoids.
//! transformers adds 1e-6 to the sum that weights are divided by; left out here: with sigmoids it is below their rounding in
//! the precision the model was trained in.

use super::{
    Arch, Names, experts,
    lfm2::{self, LFM2},
    mixers,
};
use crate::config::{GgufExperts, Keys, MAX_HEADS, Routing, RoutingKey, RoutingScore};
use crate::{ExpertTensor, LayerTensor, ModelConfig, ModelError};
use serde_json::Value;

pub(super) const LFM2_MOE: Arch = Arch {
    name: "lfm2_moe",
    hf_name: "Lfm2MoeForCausalLM",
    hf_model_type: "lfm2_moe",
    gguf_name: Some("lfm2moe"),
    gguf_experts: Some(GgufExperts {
        routing_keys: &[RoutingKey::Score, RoutingKey::Scale],
        leading_dense: true,
        ..GgufExperts::everywhere(Routing { score: RoutingScore::Sigmoid, ..Routing::softmax(true) }, true)
    }),
    hf_names: Names { layer, ..LFM2.hf_names },
    aliases: &[("rms_norm_eps", "norm_eps"), ("tie_word_embeddings", "tie_embedding")],
    harmless: &["output_router_logits", "conv_dim", "conv_dim_out", "num_heads", "theta"],
    read_hf: |keys, config| {
        mixers::read_short_convolutions(keys, config)?;
        read_experts(keys, config)
    },
    ..LFM2
};

fn read_experts(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let dense: Vec<usize> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
    let routing = Routing {
        score: RoutingScore::Sigmoid,
        normalize: keys.flag("norm_topk_prob")?.unwrap_or(true),
        scale: keys.positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        bias: false,
        selection_bias: keys.flag("use_expert_bias")?.unwrap_or(true),
    };
    experts::read(keys, config, routing)?;
    let count = match keys.get("num_dense_layers").and_then(Value::as_u64) {
        Some(0) => 0,
        _ => keys.size("num_dense_layers", MAX_HEADS)?.unwrap_or(2),
    };
    for (layer, dense) in config.layers.iter_mut().zip(dense).take(count) {
        (layer.experts, layer.intermediate_size) = (None, dense);
    }
    Ok(())
}

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Router => "feed_forward.gate",
        SelectionBias => "feed_forward.expert_bias$",
        Expert(_, ExpertTensor::Gate) => "feed_forward.experts.{}.w1",
        Expert(_, ExpertTensor::Up) => "feed_forward.experts.{}.w3",
        Expert(_, ExpertTensor::Down) => "feed_forward.experts.{}.w2",
        _ => lfm2::layer(tensor),
    }
}
