//! Mixtral (Jiang et al. 2024, arXiv:2401.04088).
//! Baseline: Mistral. Experts in place of the feed-forward network.

use super::{Arch, Defaults, Names, experts, mistral::MISTRAL, names::llama_layer};
use crate::config::{GgufExperts, Routing};
use crate::{ExpertTensor, LayerTensor};

pub(super) const MIXTRAL: Arch = Arch {
    name: "mixtral",
    hf_name: "MixtralForCausalLM",
    hf_model_type: "mixtral",
    gguf_name: Some("llama"),
    hf_names: Names { layer, ..MISTRAL.hf_names },
    aliases: &[("num_experts", "num_local_experts")],
    harmless: experts::HARMLESS,
    defaults: Defaults { norm_eps: 1e-5, rope_theta: 1e6, sliding_window: None, ..MISTRAL.defaults },
    read_hf: |keys, config| experts::read(keys, config, Routing::softmax(true)),
    gguf_experts: Some(GgufExperts::everywhere(Routing::softmax(true), false)),
    ..MISTRAL
};

fn layer(tensor: LayerTensor) -> &'static str {
    match tensor.weight() {
        LayerTensor::Router => "block_sparse_moe.gate",
        LayerTensor::Expert(_, ExpertTensor::Gate) => "block_sparse_moe.experts.{}.w1",
        LayerTensor::Expert(_, ExpertTensor::Up) => "block_sparse_moe.experts.{}.w3",
        LayerTensor::Expert(_, ExpertTensor::Down) => "block_sparse_moe.experts.{}.w2",
        _ => llama_layer(tensor),
    }
}
