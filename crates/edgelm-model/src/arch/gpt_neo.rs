//! GPT-Neo (Black et al. 2021).
//! Baseline: GPT-2. Queries, keys and values apart and without biases, scores not scaled, windows in some layers.

use super::{Arch, BiasRule, Defaults, Names, Transposed, gpt2::GPT2};
use crate::{AttentionBias, LayerRope, LayerTensor, Style};

pub(super) const GPT_NEO: Arch = Arch {
    name: "gpt_neo",
    hf_name: "GPTNeoForCausalLM",
    hf_model_type: "gpt_neo",
    gguf_name: None,
    hf_names: Names { layer, fused: &[], transposed: Transposed::None, ..GPT2.hf_names },
    hf_ignored: &["attn.attention.bias", "attn.attention.masked_bias"],
    aliases: &[
        ("hidden_act", "activation_function"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    harmless: &[
        "attention_types",
        "classifier_dropout",
        "embed_dropout",
        "resid_dropout",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    style: Style { attention_scale: Some(1.0), ..GPT2.style },
    attention_bias: BiasRule::Always(AttentionBias::O),
    defaults: Defaults { max_position_embeddings: 2048, ..GPT2.defaults },
    read_hf: |keys, config| {
        let window = keys.required_size("window_size", usize::MAX >> 34)?;
        let kinds = keys.texts("attention_layers")?;
        if kinds.len() != config.layers.len() {
            return Err(
                keys.bad("attention_layers", &format!("must have one entry per layer ({})", config.layers.len()))
            );
        }
        for (layer, kind) in config.layers.iter_mut().zip(kinds) {
            layer.rope = LayerRope::None;
            layer.sliding_window = match kind {
                "global" => None,
                "local" => Some(window),
                _ => return Err(keys.bad("attention_layers", "supported: global, local")),
            };
        }
        Ok(())
    },
    ..GPT2
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Q => "attn.attention.q_proj",
        K => "attn.attention.k_proj",
        V => "attn.attention.v_proj",
        O => "attn.attention.out_proj",
        _ => super::gpt2::layer(tensor),
    }
}
