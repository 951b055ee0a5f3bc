//! Falcon (Almazrouei et al. 2023, arXiv:2311.16867): with one key head, with several, and the first small ones with ALiBi.
//! Baseline: GPT-NeoX. One key and value head unless said otherwise, one norm for both halves of a layer.

use super::{
    Arch, BiasRule, Defaults, MlpBiasRule, Names,
    bloom::{self, BLOOM},
    gpt_neox::GPT_NEOX,
    names::GGUF_QKV,
};
use crate::config::Keys;
use crate::{Alibi, AttentionBias, LayerRope, LayerTensor, ModelConfig, ModelError, Residual, Style};

pub(super) const FALCON: Arch = Arch {
    name: "falcon",
    hf_name: "FalconForCausalLM",
    hf_model_type: "falcon",
    gguf_name: Some("falcon"),
    hf_names: Names { embedding_norm: "", ..BLOOM.hf_names },
    aliases: &[
        ("hidden_act", "activation"),
        ("intermediate_size", "ffn_hidden_size"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("num_key_value_heads", "num_kv_heads"),
        ("num_key_value_heads", "n_head_kv"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    harmless: &["apply_residual_connection_post_layernorm"],
    attention_bias: BiasRule::Key("bias", false, AttentionBias::None, AttentionBias::Qkvo),
    mlp_bias: MlpBiasRule::Key("bias", false),
    defaults: Defaults {
        intermediate_ratio: Some(4),
        tie_word_embeddings: true,
        partial_rotary_factor: None,
        ..GPT_NEOX.defaults
    },
    gguf_keys: &[],
    read_gguf: |keys, config| {
        config.style.norms.ffn = keys.has_layer_weight("attn_norm_2");
        if config.style.norms.ffn {
            config.arch = &TWO_NORMS;
        }
        Ok(())
    },
    read_hf,
    ..GPT_NEOX
};

/// Those with a norm for each half.
const TWO_NORMS: Arch = Arch {
    hf_names: Names { layer: two_norms, ..FALCON.hf_names },
    gguf_names: Names {
        layer: |tensor| match tensor.weight() {
            LayerTensor::AttnNorm => "attn_norm_2",
            LayerTensor::FfnNorm => "attn_norm",
            _ => (GGUF_QKV.layer)(tensor),
        },
        ..GGUF_QKV
    },
    ..FALCON
};

fn two_norms(tensor: LayerTensor) -> &'static str {
    match tensor.weight() {
        LayerTensor::AttnNorm => "ln_attn",
        LayerTensor::FfnNorm => "ln_mlp",
        _ => bloom::layer(tensor),
    }
}

fn read_hf(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let mut flag = |key, default| Ok::<bool, ModelError>(keys.flag(key)?.unwrap_or(default));
    let (new, multi_query) = (flag("new_decoder_architecture", false)?, flag("multi_query", true)?);
    let (parallel, alibi) = (flag("parallel_attn", true)?, flag("alibi", false)?);
    let norms = keys.size("num_ln_in_parallel_attn", 2)?.unwrap_or(if new { 2 } else { 1 });
    let style: &mut Style = &mut config.style;
    style.residual = if new || parallel { Residual::Parallel } else { Residual::Sequential };
    style.norms.ffn = if new { norms == 2 } else { !parallel };
    style.alibi = alibi.then_some(Alibi::Falcon);
    if new && norms == 2 {
        config.arch = &TWO_NORMS;
    }
    for layer in &mut config.layers {
        layer.rope = if alibi { LayerRope::None } else { LayerRope::Global };
        if !new {
            layer.num_key_value_heads = if multi_query { 1 } else { layer.num_attention_heads };
        }
    }
    Ok(())
}
