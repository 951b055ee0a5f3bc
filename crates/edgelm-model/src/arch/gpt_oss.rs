//! gpt-oss (OpenAI 2025, arXiv:2508.10925).
//! Baseline: Qwen2-MoE. Attention sinks, a window in every other layer, biases everywhere, clamped gates.

use super::{
    Arch, BiasRule, Defaults, Names, Order, Transposed, WindowRule, experts,
    llama::LLAMA,
    names::{GGUF, gguf_layer, llama_layer},
};
use crate::config::{GgufExperts, Routing, RoutingScore};
use crate::{AttentionBias, ExpertTensor, LayerTensor, RopePairs, Style};
use edgelm_tensor::Activation;

pub(super) const GPT_OSS: Arch = Arch {
    name: "gpt_oss",
    hf_name: "GptOssForCausalLM",
    hf_model_type: "gpt_oss",
    gguf_name: Some("gpt-oss"),
    hf_names: Names {
        layer,
        fused: &[(&[LayerTensor::Gate, LayerTensor::Up], Order::Interleaved)],
        transposed: Transposed::Experts,
        ..LLAMA.hf_names
    },
    aliases: &[("num_experts", "num_local_experts"), ("num_experts_per_tok", "experts_per_token")],
    only: &[("swiglu_alpha", "1.702")],
    harmless: &["output_router_logits", "router_aux_loss_coef", "initial_context_length"],
    style: Style { sinks: true, ..LLAMA.style },
    attention_bias: BiasRule::Always(AttentionBias::Qkvo),
    window: WindowRule::AllButEach(2),
    defaults: Defaults {
        head_dim: Some(64),
        max_position_embeddings: 131_072,
        norm_eps: 1e-5,
        rope_theta: 150_000.0,
        sliding_window: Some(128),
        ..LLAMA.defaults
    },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    read_hf: |keys, config| {
        // `hidden_act` says silu; its gate is x · sigmoid(1.702 x).
        config.style.activation = Activation::QuickGelu;
        config.style.glu_limit = Some(keys.positive("swiglu_limit")?.unwrap_or(GLU_LIMIT.into()) as f32);
        experts::read(keys, config, ROUTING)?;
        let experts = config.layers.iter_mut().filter_map(|layer| layer.experts.as_mut());
        experts.for_each(|experts| experts.bias = true);
        Ok(())
    },
    gguf_experts: Some(GgufExperts::everywhere(ROUTING, true)),
    gguf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::FfnNorm => "post_attention_norm",
            _ => gguf_layer(tensor),
        },
        ..GGUF
    },
    read_gguf: |_, config| {
        (config.style.activation, config.style.glu_limit) = (Activation::QuickGelu, Some(GLU_LIMIT));
        Ok(())
    },
    ..LLAMA
};

const ROUTING: Routing =
    Routing { score: RoutingScore::Softmax, normalize: true, scale: 1.0, bias: true, selection_bias: false };

const GLU_LIMIT: f32 = 7.0;

fn layer(tensor: LayerTensor) -> &'static str {
    use ExpertTensor::{Down, DownBias, Gate, GateBias, Up, UpBias};
    match tensor {
        LayerTensor::Router | LayerTensor::RouterBias => "mlp.router",
        LayerTensor::Expert(_, Gate | Up) => "mlp.experts.gate_up_proj$",
        LayerTensor::Expert(_, GateBias | UpBias) => "mlp.experts.gate_up_proj_bias$",
        LayerTensor::Expert(_, Down) => "mlp.experts.down_proj$",
        LayerTensor::Expert(_, DownBias) => "mlp.experts.down_proj_bias$",
        _ => llama_layer(tensor),
    }
}
