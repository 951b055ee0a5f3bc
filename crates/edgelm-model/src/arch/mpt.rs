//! MPT (MosaicML 2023).
//! Baseline: BLOOM. No biases, norms without one too; no norm after the embeddings.

use super::{Arch, BiasRule, MlpBiasRule, Names, Order, bloom::BLOOM, names::llama_layer};
use crate::config::StyleKey;
use crate::{AttentionBias, LayerRope, LayerTensor, NormKind, Style};
use edgelm_tensor::Activation;

pub(super) const MPT: Arch = Arch {
    name: "mpt",
    hf_name: "MptForCausalLM",
    hf_model_type: "mpt",
    gguf_name: Some("mpt"),
    hf_names: Names {
        token_embedding: "wte",
        output_norm: "norm_f",
        layers: "blocks.",
        layer,
        fused: &[(&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::Stacked)],
        ..BLOOM.hf_names
    },
    aliases: &[
        ("hidden_size", "d_model"),
        ("max_position_embeddings", "max_seq_len"),
        ("num_attention_heads", "n_heads"),
        ("num_hidden_layers", "n_layers"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    only: &[("no_bias", "true"), ("embedding_fraction", "1.0"), ("logit_scale", "null")],
    // transformers' model has ALiBi and a feed-forward network of 4 D whatever these say.
    harmless: &[
        "emb_pdrop",
        "expansion_ratio",
        "init_config",
        "init_device",
        "learned_pos_emb",
        "norm_type",
        "tokenizer_name",
        "verbose",
    ],
    style: Style { norm: NormKind::LayerGain, activation: Activation::Gelu, embedding_norm: false, ..BLOOM.style },
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    gguf_keys: &[StyleKey::ClipQkv, StyleKey::AlibiBias],
    read_hf: |keys, config| {
        config.layers.iter_mut().for_each(|layer| layer.rope = LayerRope::None);
        let Some(mut attention) = keys.object("attn_config")? else { return Ok(()) };
        config.style.clip_qkv = attention.positive("clip_qkv")?.map(|limit| limit as f32);
        config.style.attention_scale = attention.positive("softmax_scale")?.map(|scale| scale as f32);
        for (key, only) in [("prefix_lm", false), ("qk_ln", false), ("alibi", true), ("rope", false)] {
            if attention.flag(key)?.is_some_and(|flag| flag != only) {
                return Err(attention.bad(key, &format!("only {only} is supported")));
            }
        }
        if attention.number("alibi_bias_max")?.is_some_and(|max| max != 8.0) {
            return Err(attention.bad("alibi_bias_max", "only 8 is supported"));
        }
        if attention.text("attn_type")?.is_some_and(|kind| kind != "multihead_attention") {
            return Err(attention.bad("attn_type", "only multihead_attention is supported"));
        }
        Ok(())
    },
    ..BLOOM
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        AttnNorm => "norm_1",
        Q | K | V => "attn.Wqkv",
        O => "attn.out_proj",
        FfnNorm => "norm_2",
        Up => "ffn.up_proj",
        Down => "ffn.down_proj",
        _ => llama_layer(tensor),
    }
}
