//! GPT-2 (Radford et al. 2019).
//! Baseline: BLOOM. Learned positions; matrices stored [in, out].

use super::{Arch, Defaults, Names, Order, Transposed, bloom::BLOOM, names::llama_layer};
use crate::{LayerRope, LayerTensor, Style};

pub(super) const GPT2: Arch = Arch {
    name: "gpt2",
    hf_name: "GPT2LMHeadModel",
    hf_model_type: "gpt2",
    gguf_name: Some("gpt2"),
    hf_names: Names {
        token_embedding: "wte",
        position_embedding: "wpe",
        layer,
        fused: &[(&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::Stacked)],
        transposed: Transposed::All,
        ..BLOOM.hf_names
    },
    hf_ignored: &["attn.bias", "attn.masked_bias"],
    aliases: &[
        ("hidden_act", "activation_function"),
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    only: &[("scale_attn_weights", "true")],
    harmless: &[
        "attention_softmax_in_fp32",
        "n_ctx",
        "reorder_and_upcast_attn",
        "scale_attention_softmax_in_fp32",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    style: Style { alibi: None, embedding_norm: false, position_embedding: Some(0), ..BLOOM.style },
    defaults: Defaults { max_position_embeddings: 1024, ..BLOOM.defaults },
    read_hf: |keys, config| {
        config.style.scale_by_layer = keys.flag("scale_attn_by_inverse_layer_idx")? == Some(true);
        config.layers.iter_mut().for_each(|layer| layer.rope = LayerRope::None);
        Ok(())
    },
    ..BLOOM
};

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        AttnNorm => "ln_1",
        Q | K | V => "attn.c_attn",
        O => "attn.c_proj",
        FfnNorm => "ln_2",
        Up => "mlp.c_fc",
        Down => "mlp.c_proj",
        _ => llama_layer(tensor),
    }
}
