//! OLMoE (Muennighoff et al. 2024, arXiv:2409.02060).
//! Baseline: Llama. Experts in place of the feed-forward network; norms of all queries and all keys at once.

use super::{Arch, Defaults, MlpBiasRule, experts, llama::LLAMA};
use crate::config::{GgufExperts, Routing};
use crate::{NormKind, QkNorm, RopePairs, Style};

pub(super) const OLMOE: Arch = Arch {
    name: "olmoe",
    hf_name: "OlmoeForCausalLM",
    hf_model_type: "olmoe",
    gguf_name: Some("olmoe"),
    harmless: experts::HARMLESS,
    style: Style { qk_norm: QkNorm::All(NormKind::Rms), ..LLAMA.style },
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { norm_eps: 1e-5, max_position_embeddings: 4096, ..LLAMA.defaults },
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    read_hf: |keys, config| {
        config.style.clip_qkv = keys.positive("clip_qkv")?.map(|limit| limit as f32);
        let normalize = keys.flag("norm_topk_prob")?.unwrap_or(false);
        experts::read(keys, config, Routing::softmax(normalize))
    },
    gguf_experts: Some(GgufExperts::everywhere(Routing::softmax(false), false)),
    ..LLAMA
};
