//! Seed-OSS (ByteDance 2025).
//! Baseline: Llama. Biases on queries, keys and values, on the output only where asked for.

use super::{
    Arch, BiasRule, Defaults, Names,
    llama::LLAMA,
    names::{GGUF, gguf_layer},
};
use crate::{AttentionBias, LayerTensor, RopePairs};

pub(super) const SEED_OSS: Arch = Arch {
    name: "seed_oss",
    hf_name: "SeedOssForCausalLM",
    hf_model_type: "seed_oss",
    gguf_name: Some("seed_oss"),
    harmless: &["residual_dropout"],
    attention_bias: BiasRule::Key("attention_bias", true, AttentionBias::None, AttentionBias::Qkv),
    defaults: Defaults { head_dim: Some(128), max_position_embeddings: 524_288, ..LLAMA.defaults },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    gguf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::FfnNorm => "post_attention_norm",
            _ => gguf_layer(tensor),
        },
        ..GGUF
    },
    read_hf: |keys, config| {
        if keys.flag("attention_out_bias")? == Some(true) {
            for layer in &mut config.layers {
                layer.attention_bias =
                    if layer.attention_bias.on_inputs() { AttentionBias::Qkvo } else { AttentionBias::O };
            }
        }
        Ok(())
    },
    ..LLAMA
};
