//! BLOOM (BigScience 2022, arXiv:2211.05100).
//! Baseline: GPT-NeoX. ALiBi in place of rotation, a norm after the embeddings.

use super::{
    Arch, BiasRule, Defaults, Names,
    gpt_neox::{FUSED, GPT_NEOX},
    llama::LLAMA,
    names::llama_layer,
};
use crate::{Alibi, AttentionBias, LayerRope, LayerTensor, Residual, Style};
use edgelm_tensor::Activation;

pub(super) const BLOOM: Arch = Arch {
    name: "bloom",
    hf_name: "BloomForCausalLM",
    hf_model_type: "bloom",
    gguf_name: Some("bloom"),
    hf_names: Names {
        token_embedding: "word_embeddings",
        embedding_norm: "word_embeddings_layernorm",
        output_norm: "ln_f",
        output: "lm_head",
        layers: "h.",
        layer,
        prefixes: &[("transformer.", ""), ("", "")],
        fused: FUSED,
        ..LLAMA.hf_names
    },
    aliases: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("hidden_size", "n_embed"),
    ],
    harmless: &[
        "slow_but_exact",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "unk_token_id",
        "masked_softmax_fusion",
        "bias_dropout_fusion",
        "attention_softmax_in_fp32",
    ],
    style: Style {
        residual: Residual::Sequential,
        activation: Activation::GeluTanh,
        alibi: Some(Alibi::Scores),
        embedding_norm: true,
        ..GPT_NEOX.style
    },
    attention_bias: BiasRule::Always(AttentionBias::Qkvo),
    defaults: Defaults {
        intermediate_ratio: Some(4),
        tie_word_embeddings: true,
        partial_rotary_factor: None,
        ..GPT_NEOX.defaults
    },
    gguf_keys: &[],
    read_hf: |keys, config| {
        if keys.flag("apply_residual_connection_post_layernorm")? == Some(true) {
            config.style.residual = Residual::Normed;
        }
        config.layers.iter_mut().for_each(|layer| layer.rope = LayerRope::None);
        Ok(())
    },
    ..GPT_NEOX
};

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Q | K | V => "self_attention.query_key_value",
        O => "self_attention.dense",
        Up => "mlp.dense_h_to_4h",
        Down => "mlp.dense_4h_to_h",
        _ => llama_layer(tensor),
    }
}
