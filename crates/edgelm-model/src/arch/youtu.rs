//! Youtu-LLM (Tencent 2025, arXiv:2512.24618).
//! Baseline: Llama. Latent attention.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, deepseek_v2::DEEPSEEK_V2, latent, llama::LLAMA};
use crate::{AttentionBias, RopePairs};

pub(super) const YOUTU: Arch = Arch {
    name: "youtu",
    hf_name: "YoutuForCausalLM",
    hf_model_type: "youtu",
    // llama.cpp runs these as a DeepSeek-V2 without experts.
    gguf_name: DEEPSEEK_V2.gguf_name,
    gguf_rope_factors: false,
    gguf_experts: DEEPSEEK_V2.gguf_experts,
    gguf_mixer: DEEPSEEK_V2.gguf_mixer,
    gguf_form: DEEPSEEK_V2.gguf_form,
    hf_names: latent::NAMES,
    aliases: &[("head_dim", "qk_rope_head_dim")],
    harmless: &["embedding_initializer_range"],
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { max_position_embeddings: 131_072, tie_word_embeddings: true, ..LLAMA.defaults },
    hf_rope_pairs: RopePairs::Interleaved,
    read_hf: |keys, config| {
        latent::read(keys, config)?;
        if keys.flag("rope_interleave")? == Some(false) {
            config.rope.pairs = RopePairs::Halves;
        }
        Ok(())
    },
    ..LLAMA
};
