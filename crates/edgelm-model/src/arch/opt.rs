//! OPT (Zhang et al. 2022, arXiv:2205.01068).
//! Baseline: GPT-2. Queries, keys and values apart, ReLU, two unused rows before the learned positions.

use super::{Arch, Defaults, Names, Transposed, gpt2::GPT2, names::llama_layer};
use crate::config::MAX_HIDDEN;
use crate::{LayerRope, LayerTensor, Residual, Style};
use edgelm_tensor::Activation;

pub(super) const OPT: Arch = Arch {
    name: "opt",
    hf_name: "OPTForCausalLM",
    hf_model_type: "opt",
    gguf_name: None,
    hf_names: Names {
        token_embedding: "embed_tokens",
        position_embedding: "embed_positions",
        output_norm: "final_layer_norm",
        layers: "layers.",
        layer,
        prefixes: &[("model.decoder.", ""), ("decoder.", "")],
        fused: &[],
        transposed: Transposed::None,
        ..GPT2.hf_names
    },
    aliases: &[("hidden_act", "activation_function"), ("intermediate_size", "ffn_dim")],
    only: &[("layer_norm_elementwise_affine", "true"), ("enable_bias", "true")],
    harmless: &["dropout", "activation_dropout", "init_std", "layerdrop"],
    style: Style { activation: Activation::Relu, position_embedding: Some(2), ..GPT2.style },
    defaults: Defaults { max_position_embeddings: 2048, norm_eps: 1e-5, ..GPT2.defaults },
    read_hf: |keys, config| {
        if keys.flag("do_layer_norm_before")? == Some(false) {
            config.style.residual = Residual::NormAfter;
            config.style.output_norm = false;
        }
        if keys.flag("_remove_final_layer_norm")? == Some(true) {
            config.style.output_norm = false;
        }
        config.embedding_size = keys.size("word_embed_proj_dim", MAX_HIDDEN)?.unwrap_or(config.hidden_size);
        config.layers.iter_mut().for_each(|layer| layer.rope = LayerRope::None);
        Ok(())
    },
    ..GPT2
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        AttnNorm => "self_attn_layer_norm",
        Q => "self_attn.q_proj",
        K => "self_attn.k_proj",
        V => "self_attn.v_proj",
        O => "self_attn.out_proj",
        FfnNorm => "final_layer_norm",
        Up => "fc1",
        Down => "fc2",
        _ => llama_layer(tensor),
    }
}
