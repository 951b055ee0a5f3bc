//! Qwen3.5 dense decoders, text (Qwen Team 2026).
//! Baseline: Qwen3-Next. One feed-forward network; the delta nets' projections are tensors of their own.

use super::{
    Arch, Names, Order,
    mixers::read_delta_nets,
    names::{GGUF, gguf_layer},
    qwen3_next::{self, QWEN3_NEXT, delta_layer},
};
use crate::config::{GgufMixer, StyleKey};
use crate::{LayerTensor, ModelConfig, ValueOrder};

pub(super) const QWEN3_5: Arch = Arch {
    name: "qwen3_5",
    hf_name: "Qwen3_5ForCausalLM",
    hf_model_type: "qwen3_5_text",
    gguf_name: Some("qwen35"),
    gguf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::MixerBeta | LayerTensor::MixerDecay => gguf_layer(tensor),
            _ => qwen3_next::gguf(tensor),
        },
        fused: &[(&[LayerTensor::Q, LayerTensor::QGate], Order::PerHead)],
        ..GGUF
    },
    gguf_keys: &[StyleKey::RopeSections],
    gguf_experts: None,
    gguf_mixer: GgufMixer::DeltaNet(ValueOrder::Tiled),
    gguf_form: ModelConfig::tile_values,
    hf_names: Names {
        layer: delta_layer,
        fused: &[(&[LayerTensor::Q, LayerTensor::QGate], Order::PerHead)],
        ..QWEN3_NEXT.hf_names
    },
    aliases: &[],
    only: &[("attn_output_gate", "true")],
    // Of the layers that predict further tokens, and of a kernel's state: this one's is f32.
    harmless: &["mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"],
    read_hf: read_delta_nets,
    ..QWEN3_NEXT
};
