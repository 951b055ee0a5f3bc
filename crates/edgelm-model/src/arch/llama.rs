//! Llama decoders (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288): the baseline.

use super::{Arch, BiasRule, Defaults, HfNames, WindowRule, names::llama_layer};
use crate::{AttentionBias, RopePairs};

pub(super) const LLAMA: Arch = Arch {
    name: "llama",
    hf_name: "LlamaForCausalLM",
    hf_model_type: "llama",
    gguf_name: "llama",
    hf_names: HfNames {
        token_embedding: "model.embed_tokens.weight",
        output_norm: "model.norm.weight",
        output: "lm_head.weight",
        layers: "model.layers.",
        layer: llama_layer,
    },
    hf_ignored: &["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.masked_bias"],
    qk_norm: false,
    attention_bias: BiasRule::Key(AttentionBias::Qkvo),
    mlp_bias: true,
    window: WindowRule::Never,
    defaults: Defaults {
        head_dim: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10000.0,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
    },
    gguf_rope_pairs: RopePairs::Interleaved,
    gguf_rope_factors: true,
};
