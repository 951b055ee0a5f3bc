//! What layers compute, where GGUF files say it in a key: one table for reading and writing.

use super::{
    LayerConfig, LayerRope, ModelConfig, QueryGrowth, Residual, Style, gguf_keys::GgufKeys, limits::MAX_CONTEXT,
};
use crate::ModelError;
use edgelm_format::gguf::{Array, Value};

/// A key of GGUF files that changes what layers compute, in families whose files have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StyleKey {
    /// `attention.scale`: multiplies q·k.
    AttentionScale,
    /// `attn_logit_softcapping`: on scores.
    AttentionSoftcap,
    /// `final_logit_softcapping`: on logits.
    LogitSoftcap,
    /// `logit_scale`: multiplies logits.
    LogitScale,
    /// `logit_scale`: divides logits.
    LogitDivisor,
    /// `embedding_scale`.
    EmbeddingScale,
    /// `residual_scale`.
    ResidualScale,
    /// `attention.clamp_kqv`.
    ClipQkv,
    /// `attention.max_alibi_bias`: 8 is the only one there is.
    AlibiBias,
    /// `use_parallel_residual`.
    ParallelResidual,
    /// `attention.temperature_scale`: β of queries that grow with their position.
    QueryGrowth,
    /// `rope.scaling.finetuned`: false where no layer rotates queries and keys.
    Rotation,
    /// `attention.rope_pattern`: false for layers that do not rotate queries and keys.
    RopePattern,
    /// `rope.dimension_sections`: how rotated components are shared out between the positions of a text or picture, which are
    /// all the same in a text.
    RopeSections,
}

/// The bias of the first of eight heads over one position is half of this power of two.
const ALIBI_BIAS: f64 = 8.0;

impl StyleKey {
    fn name(self) -> &'static str {
        match self {
            Self::AttentionScale => "attention.scale",
            Self::AttentionSoftcap => "attn_logit_softcapping",
            Self::LogitSoftcap => "final_logit_softcapping",
            Self::LogitScale | Self::LogitDivisor => "logit_scale",
            Self::EmbeddingScale => "embedding_scale",
            Self::ResidualScale => "residual_scale",
            Self::ClipQkv => "attention.clamp_kqv",
            Self::AlibiBias => "attention.max_alibi_bias",
            Self::ParallelResidual => "use_parallel_residual",
            Self::QueryGrowth => "attention.temperature_scale",
            Self::Rotation => "rope.scaling.finetuned",
            Self::RopePattern => "attention.rope_pattern",
            Self::RopeSections => "rope.dimension_sections",
        }
    }

    /// Puts what the file says into `config`. A number of 0 counts as absent, as it does in llama.cpp; a key that is
    /// absent leaves what the family has.
    pub(super) fn read(self, keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
        let name = self.name();
        if self == Self::ParallelResidual {
            let Some(parallel) = keys.get(name).and_then(Value::as_bool) else {
                return Err(keys.bad(name, "must be true or false"));
            };
            config.style.residual = if parallel { Residual::Parallel } else { Residual::Sequential };
            return Ok(());
        }
        if self == Self::Rotation {
            match keys.get(name).map(Value::as_bool) {
                None | Some(Some(true)) => {}
                Some(Some(false)) => config.layers.iter_mut().for_each(|layer| layer.rope = LayerRope::None),
                Some(None) => return Err(keys.bad(name, "must be true or false")),
            }
            return Ok(());
        }
        if self == Self::RopePattern {
            let layers = config.layers.iter_mut();
            match keys.get(name) {
                None => {}
                Some(Value::Array(Array::Bool(pattern))) if pattern.len() == layers.len() => {
                    layers.zip(pattern).filter(|(_, rotates)| !**rotates).for_each(|(layer, _)| {
                        layer.rope = LayerRope::None;
                    });
                }
                Some(_) => return Err(keys.bad(name, "must hold a boolean per layer")),
            }
            return Ok(());
        }
        if self == Self::RopeSections {
            keys.get(name);
            return Ok(());
        }
        let value = keys.nonzero(name)?;
        match (self, value) {
            (Self::AlibiBias, Some(ALIBI_BIAS)) => return Ok(()),
            (Self::AlibiBias, _) => return Err(keys.bad(name, "only 8 is supported")),
            (Self::LogitDivisor, None) => return Err(keys.bad(name, "this architecture needs it")),
            (_, Some(value)) if value < 0.0 => return Err(keys.bad(name, "must not be negative")),
            _ => {}
        }
        let Some(value) = value else { return Ok(()) };
        let number = value as f32;
        let style: &mut Style = &mut config.style;
        match self {
            Self::AttentionScale => style.attention_scale = Some(number),
            Self::AttentionSoftcap => style.attention_softcap = Some(number),
            Self::LogitSoftcap => style.logit_softcap = Some(number),
            Self::LogitScale => style.logit_scale = number,
            Self::LogitDivisor => style.logit_scale = 1.0 / number,
            Self::EmbeddingScale => style.embedding_scale = number,
            Self::ResidualScale => style.residual_scale = number,
            Self::ClipQkv => style.clip_qkv = Some(number),
            Self::QueryGrowth => {
                let original = keys.size("rope.scaling.original_context_length", MAX_CONTEXT)?;
                let original_max_position_embeddings = original.unwrap_or(config.max_position_embeddings);
                config.rope.query_growth = Some(QueryGrowth { beta: value, original_max_position_embeddings });
            }
            Self::AlibiBias | Self::ParallelResidual | Self::Rotation | Self::RopePattern | Self::RopeSections => {}
        }
        Ok(())
    }

    /// Key and value for a file; `None` where leaving it out says the same.
    pub(super) fn written(self, config: &ModelConfig) -> Option<(&'static str, Value)> {
        let style = &config.style;
        let number = match self {
            Self::AttentionScale => style.attention_scale,
            Self::AttentionSoftcap => style.attention_softcap,
            Self::LogitSoftcap => style.logit_softcap,
            Self::LogitScale => Some(style.logit_scale),
            Self::LogitDivisor => Some(1.0 / style.logit_scale),
            Self::EmbeddingScale => Some(style.embedding_scale),
            Self::ResidualScale => Some(style.residual_scale),
            Self::ClipQkv => style.clip_qkv,
            Self::AlibiBias => Some(ALIBI_BIAS as f32),
            Self::QueryGrowth => config.rope.query_growth.map(|growth| growth.beta as f32),
            Self::Rotation => {
                let rotates = |layer: &LayerConfig| layer.mixer.has_attention() && layer.rope != LayerRope::None;
                return Some((self.name(), Value::Bool(config.layers.iter().any(rotates))));
            }
            Self::RopePattern => {
                let rotates = config.layers.iter().map(|layer| layer.rope != LayerRope::None).collect();
                return Some((self.name(), Value::Array(Array::Bool(rotates))));
            }
            Self::RopeSections => {
                // As even as whole numbers are: 11, 11 and 10 of Qwen3.5's 32.
                let pairs = u32::try_from(config.rope.rotary_dim / 2).unwrap_or(0);
                let sections = [pairs.div_ceil(3), (pairs + 1) / 3, pairs / 3, 0].map(|count| count as i32);
                return Some((self.name(), Value::Array(Array::I32(sections.to_vec()))));
            }
            Self::ParallelResidual => {
                return Some((self.name(), Value::Bool(style.residual == Residual::Parallel)));
            }
        };
        number.map(|number| (self.name(), Value::F32(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LayerTensor, TensorId,
        config::{GgufTensors, hf::tests::tiny},
    };
    use edgelm_format::gguf::Metadata;
    use std::path::Path;

    /// Reads metadata beside the tensors of `config`, and one more.
    fn read(config: &ModelConfig, metadata: &Metadata, more: &str) -> Result<ModelConfig, ModelError> {
        let shape = |name: &str| match name {
            "token_embd.weight" => Some(vec![config.vocab_size, config.hidden_size]),
            name => (name == more).then(|| vec![1]),
        };
        let tensors = GgufTensors { shape: &shape, rope_factors: None, long_factors: None };
        ModelConfig::from_gguf(metadata, tensors, Path::new("x.gguf"))
    }

    fn without(metadata: &Metadata, key: &str) -> Metadata {
        metadata.iter().filter(|(name, _)| name != key).cloned().collect()
    }

    #[test]
    fn keys_that_a_family_needs_or_restricts_are_named() {
        let cases = [
            (
                r#""model_type": "gpt_neox", "rotary_pct": 0.67"#,
                "gptneox.use_parallel_residual",
                None,
                "must be true or false",
            ),
            (r#""model_type": "granite""#, "granite.logit_scale", None, "this architecture needs it"),
            (r#""model_type": "mpt""#, "mpt.attention.max_alibi_bias", Some(4.0), "only 8 is supported"),
            (r#""model_type": "granite""#, "granite.residual_scale", Some(-1.0), "must not be negative"),
        ];
        for (keys, key, value, want) in cases {
            let config = tiny(keys);
            let mut metadata = config.gguf_metadata().expect("it can be written");
            assert!(metadata.iter().any(|(name, _)| name == key), "{key}");
            metadata = without(&metadata, key);
            metadata.extend(value.map(|value| (key.to_owned(), Value::F32(value))));
            let error = read(&config, &metadata, "").expect_err("refused").to_string();
            assert!(error.contains(&format!("`{key}`")) && error.contains(want), "{error}");
        }
    }

    #[test]
    fn files_of_phi_may_have_queries_keys_and_values_in_one_tensor() {
        let config = tiny(r#""model_type": "phi", "partial_rotary_factor": 0.67"#);
        let metadata = config.gguf_metadata().expect("it can be written");
        let q = TensorId::Layer(0, LayerTensor::Q);
        for (more, want) in [("", "blk.0.attn_q.weight"), ("blk.0.attn_qkv.weight", "blk.0.attn_qkv.weight")] {
            let read = read(&config, &metadata, more).expect("a good file");
            assert_eq!(read.arch.gguf_tensor_name(q), want);
        }
    }
}
