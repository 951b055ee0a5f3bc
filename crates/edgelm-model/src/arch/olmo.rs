//! OLMo (Groeneveld et al. 2024, arXiv:2402.00838).
//! Baseline: Llama. Layer norms without gain and bias; queries, keys and values may be clamped.

use super::{Arch, Defaults, MlpBiasRule, llama::LLAMA};
use crate::config::StyleKey;
use crate::{NormKind, Style};

pub(super) const OLMO: Arch = Arch {
    name: "olmo",
    hf_name: "OlmoForCausalLM",
    hf_model_type: "olmo",
    gguf_name: Some("olmo"),
    style: Style { norm: NormKind::LayerPlain, ..LLAMA.style },
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { norm_eps: 1e-5, ..LLAMA.defaults },
    gguf_rope_factors: false,
    gguf_keys: &[StyleKey::ClipQkv],
    read_hf: |keys, config| {
        config.style.clip_qkv = keys.positive("clip_qkv")?.map(|limit| limit as f32);
        Ok(())
    },
    ..LLAMA
};
