//! MiniCPM3 (OpenBMB 2024).
//! Baseline: Llama. Latent attention; fixed factors on embeddings, residuals and logits.

use super::{Arch, BiasRule, Defaults, MlpBiasRule, latent, llama::LLAMA};
use crate::{AttentionBias, RopePairs, config::GgufMixer};

const SCALE_EMB: f32 = 12.0;
const SCALE_DEPTH: f64 = 1.4;
const DIM_MODEL_BASE: f64 = 256.0;

pub(super) const MINICPM3: Arch = Arch {
    name: "minicpm3",
    hf_name: "MiniCPM3ForCausalLM",
    hf_model_type: "minicpm3",
    gguf_name: Some("minicpm3"),
    gguf_names: latent::GGUF_FUSED,
    gguf_rope_pairs: RopePairs::Halves,
    gguf_rope_factors: false,
    gguf_long_factors: true,
    gguf_mixer: GgufMixer::Latent,
    read_gguf: |_, config| {
        // llama.cpp has those of the one model there is, whatever the file says.
        let depth = (config.layers.len() as f64).sqrt();
        config.style.embedding_scale = SCALE_EMB;
        config.style.residual_scale = (SCALE_DEPTH / depth) as f32;
        config.style.logit_scale = (DIM_MODEL_BASE / config.hidden_size as f64) as f32;
        Ok(())
    },
    hf_names: latent::NAMES,
    aliases: &[("head_dim", "qk_rope_head_dim")],
    attention_bias: BiasRule::Always(AttentionBias::None),
    mlp_bias: MlpBiasRule::Always(false),
    defaults: Defaults { max_position_embeddings: 32768, norm_eps: 1e-5, tie_word_embeddings: true, ..LLAMA.defaults },
    read_hf: |keys, config| {
        latent::read(keys, config)?;
        let depth = (config.layers.len() as f64).sqrt();
        config.style.embedding_scale = keys.positive("scale_emb")?.unwrap_or(SCALE_EMB.into()) as f32;
        let default = if keys.has("scale_depth") { depth } else { SCALE_DEPTH };
        config.style.residual_scale = (keys.positive("scale_depth")?.unwrap_or(default) / depth) as f32;
        let hidden = config.hidden_size as f64;
        let default = if keys.has("dim_model_base") { hidden } else { DIM_MODEL_BASE };
        config.style.logit_scale = (keys.positive("dim_model_base")?.unwrap_or(default) / hidden) as f32;
        Ok(())
    },
    ..LLAMA
};
