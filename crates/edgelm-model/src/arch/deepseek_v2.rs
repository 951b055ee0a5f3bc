//! DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434).
//! Baseline: Llama. Latent attention; experts, and shared ones, in all but the first layers.

use super::{Arch, BiasRule, MlpBiasRule, experts, latent, llama::LLAMA};
use crate::config::{GgufExperts, GgufMixer, MAX_EXPERTS, MAX_INTERMEDIATE, Routing, RoutingKey, SharedExpert};
use crate::{AttentionBias, ModelConfig, RopePairs};
use serde_json::Value;

pub(super) const DEEPSEEK_V2: Arch = Arch {
    name: "deepseek_v2",
    hf_name: "DeepseekV2ForCausalLM",
    hf_model_type: "deepseek_v2",
    gguf_name: Some("deepseek2"),
    gguf_rope_factors: false,
    gguf_experts: Some(GgufExperts {
        routing_keys: &[RoutingKey::Score, RoutingKey::Normalize, RoutingKey::Scale],
        shared: SharedExpert::Counted,
        leading_dense: true,
        ..GgufExperts::everywhere(Routing::softmax(false), true)
    }),
    gguf_mixer: GgufMixer::Latent,
    gguf_form: ModelConfig::transpose_latent_keys,
    read_gguf: |keys, config| {
        if keys.has_layer_weight("attn_kv_b") {
            config.arch = &FUSED;
        }
        Ok(())
    },
    hf_names: latent::NAMES,
    aliases: &[("head_dim", "qk_rope_head_dim"), ("num_experts", "n_routed_experts")],
    only: &[
        ("norm_topk_prob", "false"),
        ("topk_method", "\"greedy\""),
        ("scoring_func", "\"softmax\""),
        ("moe_layer_freq", "1"),
        ("ep_size", "1"),
    ],
    // The groups that `topk_method` "greedy" does not look at; how balance was trained.
    harmless: &["n_group", "topk_group", "aux_loss_alpha", "seq_aux", "output_router_logits"],
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    hf_rope_pairs: RopePairs::Interleaved,
    read_hf: |keys, config| {
        latent::read(keys, config)?;
        let dense: Vec<usize> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
        let scale = keys.positive("routed_scaling_factor")?.unwrap_or(1.0) as f32;
        experts::read(keys, config, Routing { scale, ..Routing::softmax(false) })?;
        let width = keys.required_size("moe_intermediate_size", MAX_INTERMEDIATE)?;
        let shared = keys.size("n_shared_experts", MAX_EXPERTS)?.map(|count| count * width);
        let first = match keys.get("first_k_dense_replace").and_then(Value::as_u64) {
            Some(0) => 0,
            _ => keys.size("first_k_dense_replace", MAX_EXPERTS)?.unwrap_or(0),
        };
        for (index, layer) in config.layers.iter_mut().enumerate() {
            if index < first {
                (layer.experts, layer.intermediate_size) = (None, dense[index]);
            } else if let Some(experts) = &mut layer.experts {
                experts.shared = shared;
            }
        }
        Ok(())
    },
    ..LLAMA
};

/// Older files, which have what makes keys and values in one tensor.
const FUSED: Arch = Arch { gguf_names: latent::GGUF_FUSED, gguf_form: |_| (), ..DEEPSEEK_V2 };
