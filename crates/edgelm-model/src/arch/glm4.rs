//! GLM-4-0414 (Z.ai 2025).
//! Baseline: GLM-4-9B. Norms after the halves of a layer too.

use super::{
    Arch, Names,
    glm::GLM,
    names::{GGUF, gguf_layer},
};
use crate::{LayerTensor, Norms, RopePairs, Style};

pub(super) const GLM4: Arch = Arch {
    name: "glm4",
    hf_name: "Glm4ForCausalLM",
    hf_model_type: "glm4",
    gguf_name: Some("glm4"),
    gguf_names: Names {
        layer: |tensor| match tensor {
            LayerTensor::Gate | LayerTensor::Up => "ffn_up",
            _ => gguf_layer(tensor),
        },
        fused: GLM.hf_names.fused,
        ..GGUF
    },
    style: Style { norms: Norms { attn: true, post_attn: true, ffn: true, post_ffn: true }, ..GLM.style },
    gguf_rope_pairs: RopePairs::Interleaved,
    ..GLM
};
