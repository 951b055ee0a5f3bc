//! LFM2 (Liquid AI 2025, arXiv:2511.23404).
//! Baseline: Qwen3. Short convolutions between gates in most layers, in the place of attention.

use super::{
    Arch, Defaults, MlpBiasRule, Names, WindowRule, mixers,
    names::{GGUF, gguf_layer, llama_layer},
    qwen3::QWEN3,
};
use crate::config::{GgufMixer, Keys, MAX_HEADS, MAX_INTERMEDIATE};
use crate::{AttentionBias, LayerTensor, ModelConfig, ModelError, arch::BiasRule};

pub(super) const LFM2: Arch = Arch {
    name: "lfm2",
    hf_name: "Lfm2ForCausalLM",
    hf_model_type: "lfm2",
    gguf_name: Some("lfm2"),
    // llama.cpp has the last norm under the name of that of the embeddings.
    gguf_names: Names { layer: gguf, output_norm: "token_embd_norm", embedding_norm: "", ..GGUF },
    gguf_rope_factors: false,
    gguf_mixer: GgufMixer::ShortConv,
    hf_names: Names { layer, output_norm: "embedding_norm", ..QWEN3.hf_names },
    aliases: &[
        ("rms_norm_eps", "norm_eps"),
        ("intermediate_size", "block_ff_dim"),
        ("tie_word_embeddings", "tie_embedding"),
    ],
    only: &[("block_use_swiglu", "true"), ("use_pos_enc", "true")],
    harmless: &[
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "theta",
    ],
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    window: WindowRule::Never,
    own_layer_types: &["conv"],
    defaults: Defaults {
        head_dim: None,
        max_position_embeddings: 128_000,
        norm_eps: 1e-5,
        rope_theta: 1e6,
        sliding_window: None,
        tie_word_embeddings: true,
        ..QWEN3.defaults
    },
    read_hf: |keys, config| {
        mixers::read_short_convolutions(keys, config)?;
        read_width(keys, config)
    },
    ..QWEN3
};

/// F follows from `intermediate_size` where `block_auto_adjust_ff_dim` says so: two thirds of it, times a factor, rounded up.
fn read_width(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let own = keys.size("block_ff_dim", MAX_INTERMEDIATE)?;
    let adjust = keys.flag("block_auto_adjust_ff_dim")?.unwrap_or(true);
    let default = if keys.has("block_ffn_dim_multiplier") { None } else { Some(1.0) };
    let factor = keys.positive("block_ffn_dim_multiplier")?.or(default);
    let multiple = keys.size("block_multiple_of", MAX_HEADS)?.unwrap_or(256);
    for layer in &mut config.layers {
        let mut width = own.unwrap_or(layer.intermediate_size);
        if adjust {
            width = 2 * width / 3;
            if let Some(factor) = factor {
                width = ((factor * width as f64) as usize).min(MAX_INTERMEDIATE + 1).next_multiple_of(multiple);
            }
        }
        if !(1..=MAX_INTERMEDIATE).contains(&width) {
            return Err(keys.bad("block_ffn_dim_multiplier", &format!("makes a feed-forward network of {width}")));
        }
        layer.intermediate_size = width;
    }
    Ok(())
}

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        AttnNorm => "operator_norm",
        QNorm => "self_attn.q_layernorm",
        KNorm => "self_attn.k_layernorm",
        O => "self_attn.out_proj",
        FfnNorm => "ffn_norm",
        Gate => "feed_forward.w1",
        Up => "feed_forward.w3",
        Down => "feed_forward.w2",
        MixerIn => "conv.in_proj",
        Conv => "conv.conv",
        MixerOut => "conv.out_proj",
        _ => llama_layer(tensor),
    }
}

fn gguf(tensor: LayerTensor) -> &'static str {
    match tensor.weight() {
        LayerTensor::MixerIn => "shortconv.in_proj",
        LayerTensor::Conv => "shortconv.conv",
        LayerTensor::MixerOut => "shortconv.out_proj",
        _ => gguf_layer(tensor),
    }
}
