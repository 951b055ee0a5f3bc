//! Gemma 2 (Gemma Team 2024, arXiv:2408.00118).
//! Baseline: Gemma. Norms after each half of a layer too, soft caps on scores and logits, a window in every other layer.

use super::{
    Arch, Defaults, Names, WindowRule,
    gemma::{GEMMA, read_scale},
    llama::LLAMA,
    names::llama_layer,
};
use crate::config::{Keys, MAX_CONTEXT, StyleKey};
use crate::{LayerTensor, ModelConfig, ModelError, Norms, Style};

pub(super) const GEMMA2: Arch = Arch {
    name: "gemma2",
    hf_name: "Gemma2ForCausalLM",
    hf_model_type: "gemma2",
    gguf_name: Some("gemma2"),
    hf_names: Names { layer, ..LLAMA.hf_names },
    style: Style { norms: Norms { attn: true, post_attn: true, ffn: true, post_ffn: true }, ..GEMMA.style },
    window: WindowRule::AllButEach(2),
    defaults: Defaults { sliding_window: Some(4096), ..GEMMA.defaults },
    gguf_keys: &[StyleKey::AttentionSoftcap, StyleKey::LogitSoftcap],
    read_gguf: |keys, config| {
        keys.required("attention.sliding_window", keys.size("attention.sliding_window", MAX_CONTEXT))?;
        let style = &mut config.style;
        (style.attention_softcap, style.logit_softcap) =
            (style.attention_softcap.or(Some(50.0)), style.logit_softcap.or(Some(30.0)));
        read_scales(config, LARGEST_LAYERS);
        Ok(())
    },
    read_hf: read_caps,
    ..GEMMA
};

/// Layers of the 27B model, whose scores are scaled by D / H instead of E.
const LARGEST_LAYERS: usize = 46;

/// Scales that GGUF files leave to the family's name: of embeddings, and of scores in a model of so many layers.
pub(super) fn read_scales(config: &mut ModelConfig, largest_layers: usize) {
    config.style.embedding_scale = (config.hidden_size as f32).sqrt();
    let Some(first) = config.layers.first() else { return };
    let width = match config.layers.len() == largest_layers {
        true => config.hidden_size / first.num_attention_heads,
        false => first.head_dim,
    };
    config.style.attention_scale = Some(1.0 / (width as f32).sqrt());
}

pub(super) fn read_caps(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    read_scale(keys, config)?;
    config.style.attention_scale = Some((1.0 / keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt()) as f32);
    let caps = config.arch.name == GEMMA2.name;
    let mut cap = |key: &'static str, default: f64| -> Result<Option<f32>, ModelError> {
        let default = (caps && !keys.has(key)).then_some(default);
        Ok(keys.positive(key)?.or(default).map(|cap| cap as f32))
    };
    config.style.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    config.style.logit_softcap = cap("final_logit_softcapping", 30.0)?;
    Ok(())
}

pub(super) fn layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::PostAttnNorm => "post_attention_layernorm",
        LayerTensor::FfnNorm => "pre_feedforward_layernorm",
        _ => llama_layer(tensor),
    }
}
