//! Command R (Cohere 2024).
//! Baseline: Llama. Norms that subtract the mean, both halves of a layer on one of them, scaled logits.

use super::{Arch, Defaults, MlpBiasRule, llama::LLAMA};
use crate::config::StyleKey;
use crate::{NormKind, Norms, QkNorm, Residual, RopePairs, Style};

pub(super) const COHERE: Arch = Arch {
    name: "cohere",
    hf_name: "CohereForCausalLM",
    hf_model_type: "cohere",
    gguf_name: Some("command-r"),
    aliases: &[("rms_norm_eps", "layer_norm_eps")],
    style: Style {
        norm: NormKind::LayerGain,
        norms: Norms { ffn: false, ..LLAMA.style.norms },
        residual: Residual::Parallel,
        ..LLAMA.style
    },
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { max_position_embeddings: 8192, norm_eps: 1e-5, tie_word_embeddings: true, ..LLAMA.defaults },
    hf_rope_pairs: RopePairs::Interleaved,
    gguf_rope_factors: false,
    gguf_keys: &[StyleKey::LogitScale],
    read_gguf: |keys, config| {
        if keys.has_layer_weight("attn_q_norm") {
            config.style.qk_norm = QkNorm::OwnHead(NormKind::LayerGain);
        }
        Ok(())
    },
    read_hf: |keys, config| {
        config.style.logit_scale = keys.positive("logit_scale")?.unwrap_or(0.0625) as f32;
        if keys.flag("use_qk_norm")? == Some(true) {
            config.style.qk_norm = QkNorm::OwnHead(NormKind::LayerGain);
        }
        Ok(())
    },
    ..LLAMA
};
