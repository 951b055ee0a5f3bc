//! Gemma 2 (Gemma Team 2024, arXiv:2408.00118).
//! Baseline: Gemma. Norms after each half of a layer too, soft caps on scores and logits, a window in every other layer.

use super::{
    Arch, Defaults, Names, WindowRule,
    gemma::{GEMMA, read_scale},
    llama::LLAMA,
    names::llama_layer,
};
use crate::config::Keys;
use crate::{LayerTensor, ModelConfig, ModelError, Norms, Style};

pub(super) const GEMMA2: Arch = Arch {
    name: "gemma2",
    hf_name: "Gemma2ForCausalLM",
    hf_model_type: "gemma2",
    gguf_name: None,
    hf_names: Names { layer, ..LLAMA.hf_names },
    style: Style { norms: Norms { attn: true, post_attn: true, ffn: true, post_ffn: true }, ..GEMMA.style },
    window: WindowRule::AllButEach(2),
    defaults: Defaults { sliding_window: Some(4096), ..GEMMA.defaults },
    read_hf: read_caps,
    ..GEMMA
};

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
