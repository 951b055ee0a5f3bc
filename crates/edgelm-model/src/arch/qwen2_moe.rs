//! Qwen1.5-MoE and Qwen2-MoE (arXiv:2407.10671).
//! Baseline: Qwen2. Experts in place of the feed-forward network, one of them shared by all tokens behind a gate.

use super::{Arch, Defaults, experts, qwen2::QWEN2};
use crate::config::{GgufExperts, MAX_INTERMEDIATE, Routing, SharedExpert};

pub(super) const QWEN2_MOE: Arch = Arch {
    name: "qwen2_moe",
    hf_name: "Qwen2MoeForCausalLM",
    hf_model_type: "qwen2_moe",
    gguf_name: Some("qwen2moe"),
    harmless: experts::HARMLESS,
    defaults: Defaults { sliding_window: None, ..QWEN2.defaults },
    read_hf: |keys, config| {
        let dense: Vec<usize> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
        let normalize = keys.flag("norm_topk_prob")?.unwrap_or(false);
        experts::read(keys, config, Routing::softmax(normalize))?;
        let shared = keys.required_size("shared_expert_intermediate_size", MAX_INTERMEDIATE)?;
        for experts in config.layers.iter_mut().filter_map(|layer| layer.experts.as_mut()) {
            (experts.shared, experts.shared_gate) = (Some(shared), true);
        }
        experts::read_dense_layers(keys, config, &dense)
    },
    gguf_experts: Some(GgufExperts {
        shared: SharedExpert::Gated,
        ..GgufExperts::everywhere(Routing::softmax(false), true)
    }),
    ..QWEN2
};
