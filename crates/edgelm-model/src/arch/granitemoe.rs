//! Granite 3 MoE (IBM 2024).
//! Baseline: Granite. Experts in place of the feed-forward network, all of them in two tensors.

use super::{
    Arch, Names, Order, experts,
    granite::{GRANITE, read_factors},
    names::llama_layer,
};
use crate::config::{GgufExperts, Routing, SharedExpert};
use crate::{ExpertTensor, LayerTensor};

pub(super) const GRANITEMOE: Arch = Arch {
    name: "granitemoe",
    hf_name: "GraniteMoeForCausalLM",
    hf_model_type: "granitemoe",
    gguf_name: Some("granitemoe"),
    hf_names: Names { layer, fused: &[(&[LayerTensor::Gate, LayerTensor::Up], Order::Stacked)], ..GRANITE.hf_names },
    aliases: &[("num_experts", "num_local_experts")],
    harmless: experts::HARMLESS,
    read_hf: |keys, config| {
        read_factors(keys, config)?;
        experts::read(keys, config, Routing::softmax(true))
    },
    gguf_experts: Some(GgufExperts {
        shared: SharedExpert::Plain,
        ..GgufExperts::everywhere(Routing::softmax(true), false)
    }),
    ..GRANITE
};

fn layer(tensor: LayerTensor) -> &'static str {
    match tensor.weight() {
        LayerTensor::Router => "block_sparse_moe.router.layer",
        LayerTensor::Expert(_, ExpertTensor::Down) => "block_sparse_moe.output_linear",
        LayerTensor::Expert(..) => "block_sparse_moe.input_linear",
        _ => llama_layer(tensor),
    }
}
