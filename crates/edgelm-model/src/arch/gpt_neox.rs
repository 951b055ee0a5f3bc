//! GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373).
//! Baseline: Phi. A norm for each half of a layer; queries, keys and values in one tensor, head by head.

use super::{
    Arch, BiasRule, Defaults, Names, Order,
    llama::LLAMA,
    names::{GGUF_QKV, llama_layer},
    phi::PHI,
};
use crate::config::StyleKey;
use crate::{AttentionBias, LayerTensor, Residual, Style};
use edgelm_tensor::Activation;

pub(super) const GPT_NEOX: Arch = Arch {
    name: "gpt_neox",
    hf_name: "GPTNeoXForCausalLM",
    hf_model_type: "gpt_neox",
    gguf_name: Some("gptneox"),
    hf_names: Names {
        token_embedding: "embed_in",
        output_norm: "final_layer_norm",
        output: "embed_out",
        prefixes: &[("gpt_neox.", ""), ("", "")],
        layer,
        fused: FUSED,
        ..LLAMA.hf_names
    },
    gguf_names: GGUF_QKV,
    hf_ignored: &["rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"],
    aliases: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_pct"),
    ],
    harmless: &["classifier_dropout"],
    style: Style { norms: LLAMA.style.norms, activation: Activation::Gelu, output_bias: false, ..PHI.style },
    attention_bias: BiasRule::Key("attention_bias", true, AttentionBias::None, AttentionBias::Qkvo),
    defaults: Defaults { partial_rotary_factor: Some(0.25), ..PHI.defaults },
    gguf_keys: &[StyleKey::ParallelResidual],
    read_gguf: |_, _| Ok(()),
    read_hf: |keys, config| {
        if keys.flag("use_parallel_residual")? == Some(false) {
            config.style.residual = Residual::Sequential;
        }
        Ok(())
    },
    ..PHI
};

pub(super) const FUSED: &[(&[LayerTensor], Order)] =
    &[(&[LayerTensor::Q, LayerTensor::K, LayerTensor::V], Order::PerKvHead)];

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        Q | K | V => "attention.query_key_value",
        O => "attention.dense",
        Up => "mlp.dense_h_to_4h",
        Down => "mlp.dense_4h_to_h",
        _ => llama_layer(tensor),
    }
}
