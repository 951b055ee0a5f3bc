//! HyperCLOVA X SEED (Naver 2025).
//! Baseline: Granite. May have norms after the halves of a layer; logits are multiplied, not divided.

use super::{
    Arch, Names,
    granite::{GRANITE, read_factors},
    llama::LLAMA,
    names::llama_layer,
};
use crate::LayerTensor;

pub(super) const HYPERCLOVAX: Arch = Arch {
    name: "hyperclovax",
    hf_name: "HyperCLOVAXForCausalLM",
    hf_model_type: "hyperclovax",
    gguf_name: None,
    hf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::PostAttnNorm => "post_norm1",
            LayerTensor::PostFfnNorm => "post_norm2",
            _ => llama_layer(tensor),
        },
        ..LLAMA.hf_names
    },
    read_hf: |keys, config| {
        read_factors(keys, config)?;
        config.style.logit_scale = keys.positive("logits_scaling")?.unwrap_or(1.0) as f32;
        if !keys.has("attention_multiplier") {
            config.style.attention_scale = None;
        }
        if keys.flag("use_post_norm")? == Some(true) {
            (config.style.norms.post_attn, config.style.norms.post_ffn) = (true, true);
        }
        Ok(())
    },
    ..GRANITE
};
