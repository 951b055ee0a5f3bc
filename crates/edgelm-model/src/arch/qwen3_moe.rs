//! Qwen3-MoE (Qwen3 Technical Report, arXiv:2505.09388).
//! Baseline: Qwen3. Experts in place of the feed-forward network.

use super::{Arch, experts, qwen3::QWEN3};
use crate::config::{GgufExperts, Routing};

pub(super) const QWEN3_MOE: Arch = Arch {
    name: "qwen3_moe",
    hf_name: "Qwen3MoeForCausalLM",
    hf_model_type: "qwen3_moe",
    gguf_name: Some("qwen3moe"),
    aliases: &[("num_experts", "num_local_experts")],
    harmless: experts::HARMLESS,
    read_hf: |keys, config| {
        let dense: Vec<usize> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
        let normalize = keys.flag("norm_topk_prob")?.unwrap_or(false);
        experts::read(keys, config, Routing::softmax(normalize))?;
        experts::read_dense_layers(keys, config, &dense)
    },
    gguf_experts: Some(GgufExperts::everywhere(Routing::softmax(true), true)),
    ..QWEN3
};
