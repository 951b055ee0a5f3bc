//! VaultGemma (Sinha et al. 2025, arXiv:2510.15001).
//! Baseline: Gemma 2. No norms after the halves of a layer.

use super::{Arch, gemma2::GEMMA2, llama::LLAMA};
use crate::Style;

pub(super) const VAULTGEMMA: Arch = Arch {
    name: "vaultgemma",
    hf_name: "VaultGemmaForCausalLM",
    hf_model_type: "vaultgemma",
    gguf_name: None,
    style: Style { norms: LLAMA.style.norms, ..GEMMA2.style },
    ..GEMMA2
};
