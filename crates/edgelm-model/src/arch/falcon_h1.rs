//! Falcon-H1 (TII 2025, arXiv:2507.22448).
//! Baseline: Llama. Mamba-2 beside attention in every layer, and fixed factors on most products.

use super::{
    Arch, Defaults, Names, mixers,
    names::{GGUF, gguf_layer, llama_layer},
};
use crate::config::{GatedNorm, GgufMixer, Keys, Mixer, Multipliers};
use crate::{LayerTensor, ModelConfig, ModelError, RopePairs, arch::llama::LLAMA};

pub(super) const FALCON_H1: Arch = Arch {
    name: "falcon_h1",
    hf_name: "FalconH1ForCausalLM",
    hf_model_type: "falcon_h1",
    gguf_name: Some("falcon-h1"),
    gguf_names: Names { layer: gguf, ..GGUF },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    gguf_mixer: GgufMixer::BesideMamba2,
    gguf_form: ModelConfig::fold_factors,
    hf_names: Names { layer, output_norm: "final_layernorm", ..LLAMA.hf_names },
    only: &[("attn_layer_indices", "null"), ("mamba_use_mlp", "true")],
    harmless: &["mlp_expansion_factor", "num_logits_to_keep"],
    defaults: Defaults { max_position_embeddings: 8192, norm_eps: 1e-5, ..LLAMA.defaults },
    read_hf,
    ..LLAMA
};

fn read_hf(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let mut mamba = mixers::read_mamba2(keys, config)?;
    mamba.out_bias = keys.flag("projectors_bias")?.unwrap_or(false);
    let before_gate = keys.flag("mamba_norm_before_gate")?.unwrap_or(true);
    mamba.norm = match (keys.flag("mamba_rms_norm")?.unwrap_or(false), before_gate) {
        (false, _) => GatedNorm::None,
        (true, true) => GatedNorm::BeforeGate,
        (true, false) => GatedNorm::AfterGate,
    };
    let mut factor = |key: &'static str| Ok::<f32, ModelError>(keys.number(key)?.unwrap_or(1.0) as f32);
    mamba.input_scale = factor("ssm_in_multiplier")?;
    mamba.output_scale = factor("ssm_out_multiplier")?;
    config.style.embedding_scale = factor("embedding_multiplier")?;
    config.style.logit_scale = factor("lm_head_multiplier")?;
    let (attention_input, key) = (factor("attention_in_multiplier")?, factor("key_multiplier")?);
    let attention_output = factor("attention_out_multiplier")?;
    mamba.scales = factors(keys, "ssm_multipliers")?;
    let [gate, down] = factors(keys, "mlp_multipliers")?;
    config.style.multipliers = Multipliers { attention_input, key, attention_output, gate, down };
    config.layers.iter_mut().for_each(|layer| layer.mixer = Mixer::AttentionAndMamba2(mamba));
    Ok(())
}

/// So many numbers; 1 where they are not given.
fn factors<const N: usize>(keys: &mut Keys<'_>, key: &'static str) -> Result<[f32; N], ModelError> {
    let Some(numbers) = keys.numbers(key)? else { return Ok([1.0; N]) };
    let numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
    numbers.try_into().map_err(|_| keys.bad(key, &format!("must hold {N} numbers")))
}

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        FfnNorm => "pre_ff_layernorm",
        Gate => "feed_forward.gate_proj",
        Up => "feed_forward.up_proj",
        Down => "feed_forward.down_proj",
        _ => llama_layer(tensor),
    }
}

/// llama.cpp has one name without an end.
fn gguf(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::FfnNorm => "ffn_norm$",
        _ => gguf_layer(tensor),
    }
}
