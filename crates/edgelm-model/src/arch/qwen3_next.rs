//! Qwen3-Next (Qwen Team 2025).
//! Baseline: Qwen3-MoE. Gated delta nets in three of four layers; gates on what the other layers' attention returns; norms
//! stored less 1; a shared expert.

use super::{
    Arch, Defaults, MlpBiasRule, Names, Order, WindowRule, experts, mixers,
    names::{GGUF, gguf_layer, llama_layer},
};
use crate::config::{GgufExperts, GgufMixer, MAX_INTERMEDIATE, Routing, SharedExpert};
use crate::{LayerTensor, NormKind, OutputGate, QkNorm, Style, ValueOrder, arch::qwen3_moe::QWEN3_MOE};

pub(super) const QWEN3_NEXT: Arch = Arch {
    name: "qwen3_next",
    hf_name: "Qwen3NextForCausalLM",
    hf_model_type: "qwen3_next",
    gguf_name: Some("qwen3next"),
    gguf_names: Names {
        layer: gguf,
        fused: &[
            (&[LayerTensor::Q, LayerTensor::QGate], Order::PerHead),
            (&[LayerTensor::MixerBeta, LayerTensor::MixerDecay], Order::PerKeyHead),
        ],
        ..GGUF
    },
    gguf_experts: Some(GgufExperts {
        shared: SharedExpert::Gated,
        ..GgufExperts::everywhere(Routing::softmax(true), true)
    }),
    gguf_mixer: GgufMixer::DeltaNet(ValueOrder::Grouped),
    hf_names: Names {
        layer,
        fused: &[
            (&[LayerTensor::Q, LayerTensor::QGate], Order::PerHead),
            (&[LayerTensor::MixerIn, LayerTensor::MixerGate], Order::PerKeyHead),
            (&[LayerTensor::MixerBeta, LayerTensor::MixerDecay], Order::PerKeyHead),
        ],
        ..QWEN3_MOE.hf_names
    },
    style: Style {
        norm: NormKind::RmsPlusOne,
        qk_norm: QkNorm::Head(NormKind::RmsPlusOne),
        output_gate: Some(OutputGate::Component),
        ..QWEN3_MOE.style
    },
    mlp_bias: MlpBiasRule::Always(false),
    window: WindowRule::Never,
    own_layer_types: &["linear_attention"],
    defaults: Defaults {
        head_dim: Some(256),
        partial_rotary_factor: Some(0.25),
        sliding_window: None,
        ..QWEN3_MOE.defaults
    },
    read_hf: |keys, config| {
        mixers::read_delta_nets(keys, config)?;
        let dense: Vec<usize> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
        let normalize = keys.flag("norm_topk_prob")?.unwrap_or(true);
        experts::read(keys, config, Routing::softmax(normalize))?;
        let shared = keys.required_size("shared_expert_intermediate_size", MAX_INTERMEDIATE)?;
        for experts in config.layers.iter_mut().filter_map(|layer| layer.experts.as_mut()) {
            (experts.shared, experts.shared_gate) = (Some(shared), true);
        }
        experts::read_dense_layers(keys, config, &dense)
    },
    ..QWEN3_MOE
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        MixerIn | MixerGate => "linear_attn.in_proj_qkvz",
        MixerBeta | MixerDecay => "linear_attn.in_proj_ba",
        _ => delta_layer(tensor),
    }
}

/// Names that Qwen3.5 has too.
pub(super) fn delta_layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        QGate => "self_attn.q_proj",
        MixerIn => "linear_attn.in_proj_qkv",
        Conv => "linear_attn.conv1d",
        DecayLog => "linear_attn.A_log$",
        StepBias => "linear_attn.dt_bias$",
        MixerNorm => "linear_attn.norm",
        MixerOut => "linear_attn.out_proj",
        _ => llama_layer(tensor),
    }
}

/// What llama.cpp calls them in Qwen3-Next; all but two in Qwen3.5 too.
pub(super) fn gguf(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        QGate => "attn_q",
        FfnNorm => "post_attention_norm",
        MixerIn => "attn_qkv",
        MixerGate => "attn_gate",
        MixerBeta | MixerDecay => "ssm_ba",
        _ => gguf_layer(tensor),
    }
}
