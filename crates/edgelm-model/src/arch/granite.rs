//! Granite 3 (IBM 2024).
//! Baseline: Llama. Fixed factors on embeddings, attention scores, residuals and logits.

use super::{Arch, llama::LLAMA};
use crate::config::{Keys, StyleKey};
use crate::{ModelConfig, ModelError};

pub(super) const GRANITE: Arch = Arch {
    name: "granite",
    hf_name: "GraniteForCausalLM",
    hf_model_type: "granite",
    gguf_name: Some("granite"),
    gguf_keys: &[
        StyleKey::AttentionScale,
        StyleKey::EmbeddingScale,
        StyleKey::ResidualScale,
        StyleKey::LogitDivisor,
        StyleKey::Rotation,
    ],
    read_hf: read_factors,
    ..LLAMA
};

pub(super) fn read_factors(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let mut factor = |key: &'static str| Ok::<f32, ModelError>(keys.positive(key)?.unwrap_or(1.0) as f32);
    config.style.embedding_scale = factor("embedding_multiplier")?;
    config.style.attention_scale = Some(factor("attention_multiplier")?);
    config.style.residual_scale = factor("residual_multiplier")?;
    config.style.logit_scale = 1.0 / factor("logits_scaling")?;
    Ok(())
}
