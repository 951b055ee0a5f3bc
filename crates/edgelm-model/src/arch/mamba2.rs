//! Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).
//! Baseline: Llama. A selective state space in the place of attention, and no feed-forward half.

use super::{Arch, Defaults, Names, mixers, names::llama_layer};
use crate::config::GgufMixer;
use crate::{LayerRope, LayerTensor, Mixer, Norms, Style, arch::llama::LLAMA};

pub(super) const MAMBA2: Arch = Arch {
    name: "mamba2",
    hf_name: "Mamba2ForCausalLM",
    hf_model_type: "mamba2",
    gguf_name: Some("mamba2"),
    gguf_mixer: GgufMixer::OnlyMamba2,
    hf_names: Names {
        layer,
        token_embedding: "embeddings",
        output_norm: "norm_f",
        prefixes: &[("backbone.", "")],
        ..LLAMA.hf_names
    },
    aliases: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("mamba_n_heads", "num_heads"),
        ("mamba_d_head", "head_dim"),
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_state", "state_size"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_expand", "expand"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_proj_bias", "use_bias"),
    ],
    only: &[("rms_norm", "true")],
    // `norm_before_gate` is written by some and read by nobody: the gate comes first.
    harmless: &["norm_before_gate", "rescale_prenorm_residual", "residual_in_fp32"],
    style: Style { norms: Norms { ffn: false, ..LLAMA.style.norms }, ..LLAMA.style },
    defaults: Defaults {
        norm_eps: 1e-5,
        num_attention_heads: Some(1),
        intermediate_ratio: Some(0),
        // It has none: this one keeps a request finite.
        max_position_embeddings: 1 << 20,
        ..LLAMA.defaults
    },
    read_hf: |keys, config| {
        let mamba = mixers::read_mamba2(keys, config)?;
        for layer in &mut config.layers {
            (layer.mixer, layer.rope) = (Mixer::Mamba2(mamba), LayerRope::None);
        }
        Ok(())
    },
    ..LLAMA
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        AttnNorm => "norm",
        MixerIn => "mixer.in_proj",
        Conv => "mixer.conv1d",
        DecayLog => "mixer.A_log$",
        Skip => "mixer.D$",
        StepBias => "mixer.dt_bias$",
        MixerNorm => "mixer.norm",
        MixerOut => "mixer.out_proj",
        _ => llama_layer(tensor),
    }
}
