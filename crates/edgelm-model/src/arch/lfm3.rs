//! LFM3 (Liquid AI 2026).
//! Baseline: LFM2. Norms after the halves of a layer too, gates on the heads, windows in some layers of attention, and a
//! rotary embedding that turns a part of each head in the others.

use super::{
    Arch, Defaults, Names, WindowRule,
    lfm2::{self, LFM2},
    llama::LLAMA,
    mixers,
    names::{GGUF, llama_layer},
};
use crate::{LayerTensor, Norms, OutputGate};

pub(super) const LFM3: Arch = Arch {
    name: "lfm3",
    hf_name: "Lfm3ForCausalLM",
    hf_model_type: "lfm3",
    gguf_name: None,
    gguf_names: GGUF,
    hf_names: Names { layer, ..LFM2.hf_names },
    aliases: &[("rms_norm_eps", "norm_eps")],
    only: &[],
    harmless: &[],
    attention_bias: LLAMA.attention_bias,
    // `layer_types` says where.
    window: WindowRule::AllButEach(4),
    defaults: Defaults {
        head_dim: Some(128),
        partial_rotary_factor: Some(1.0),
        sliding_window: Some(256),
        ..LFM2.defaults
    },
    read_hf: |keys, config| {
        for key in ["layer_types", "rope_parameters"] {
            if keys.get(key).is_none() {
                return Err(keys.fail(format!("key `{key}` is missing")));
            }
        }
        mixers::read_short_convolutions(keys, config)?;
        if keys.flag("use_sandwich_norm")?.unwrap_or(true) {
            config.style.norms = Norms { attn: true, post_attn: true, ffn: true, post_ffn: true };
        }
        if keys.flag("use_attention_gate")?.unwrap_or(true) {
            config.style.output_gate = Some(OutputGate::Head);
        }
        Ok(())
    },
    ..LFM2
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor.weight() {
        QNorm | KNorm | O => llama_layer(tensor),
        PostAttnNorm => "post_operator_norm",
        PostFfnNorm => "post_ffn_norm",
        _ => lfm2::layer(tensor),
    }
}
