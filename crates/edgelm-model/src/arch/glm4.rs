//! GLM-4-0414 (Z.ai 2025).
//! Baseline: GLM-4-9B. Norms after the halves of a layer too.

use super::{Arch, glm::GLM};
use crate::{Norms, RopePairs, Style};

pub(super) const GLM4: Arch = Arch {
    name: "glm4",
    hf_name: "Glm4ForCausalLM",
    hf_model_type: "glm4",
    gguf_name: Some("glm4"),
    style: Style { norms: Norms { attn: true, post_attn: true, ffn: true, post_ffn: true }, ..GLM.style },
    gguf_rope_pairs: RopePairs::Interleaved,
    read_gguf: |_, _| Ok(()),
    ..GLM
};
