//! What is written to a GGUF file is what its reader gets back, or nothing is written.
//!
//! GGUF leaves much of what layers compute to the name of the family, so no list of what it cannot say would stay complete:
//! the metadata of a model is read again, and both configs are compared in what they compute.

use super::{GgufTensors, LayerConfig, LayerRope, ModelConfig, RopeConfig, Style};
use crate::{ModelError, TensorId};
use edgelm_format::gguf::Metadata;
use std::{collections::BTreeMap, path::Path};

/// Names and shapes of stored tensors.
type Shapes = BTreeMap<String, Vec<usize>>;

impl ModelConfig {
    /// Errors with the first thing that a GGUF file of this metadata would not say.
    pub(super) fn check_gguf(&self, metadata: &Metadata) -> Result<(), ModelError> {
        let architecture = self.arch.gguf_name.unwrap_or(self.arch.name);
        let refuse = |what: &str| {
            ModelError::Export(format!("files of architecture `{architecture}` have no words for this model's {what}"))
        };
        if self.arch.gguf_experts.is_some_and(|kind| !kind.has_words_for(&self.layers)) {
            return Err(refuse("layers without experts"));
        }
        let shapes = self.gguf_shapes();
        let extras = self.gguf_extra_tensors();
        let values = |name: &str| extras.iter().find(|(extra, ..)| extra == name).map(|(.., values)| values.clone());
        let tensors = GgufTensors {
            shape: &|name| shapes.get(name).cloned(),
            rope_factors: values("rope_freqs.weight"),
            long_factors: values("rope_factors_short.weight").zip(values("rope_factors_long.weight")),
        };
        let back = ModelConfig::from_gguf(metadata, tensors, Path::new("GGUF"))
            .map_err(|error| ModelError::Export(format!("it could not be read back: {error}")))?;
        if let Some(what) = self.difference(&back) {
            return Err(refuse(what));
        }
        let back = back.gguf_shapes();
        let other = shapes.iter().find(|(name, shape)| back.get(*name) != Some(shape)).map(|(name, _)| name);
        match other.or_else(|| back.keys().find(|name| !shapes.contains_key(*name))) {
            Some(name) => Err(refuse(&format!("tensor `{name}`"))),
            None => Ok(()),
        }
    }

    /// Tensors of a GGUF file of this model.
    fn gguf_shapes(&self) -> Shapes {
        let names = &self.arch.gguf_names;
        let stored = |id: TensorId| names.stored(names.prefixes[0], self, id);
        self.tensor_ids().into_iter().map(stored).map(|stored| (stored.name, stored.shape)).collect()
    }

    /// What `back` computes otherwise than this model once its gains are stored whole.
    fn difference(&self, back: &Self) -> Option<&'static str> {
        let sizes = |config: &Self| {
            (config.hidden_size, config.embedding_size, config.vocab_size, config.max_position_embeddings)
        };
        if sizes(self) != sizes(back) || self.layers.len() != back.layers.len() {
            return Some("sizes");
        }
        if self.norm_eps != back.norm_eps {
            return Some("ε of norms");
        }
        if self.tie_word_embeddings != back.tie_word_embeddings {
            return Some("output head");
        }
        let scale = |config: &Self| {
            let with_heads = config.layers.iter().find(|layer| layer.mixer.has_attention());
            let scale = |head_dim: usize| config.style.attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
            with_heads.map_or(1.0, |layer| scale(layer.head_dim))
        };
        if !is_close(scale(self).into(), scale(back).into()) {
            return Some("attention scale");
        }
        let style = Style { attention_scale: back.style.attention_scale, ..self.style.with_whole_gains() };
        if let Some(what) = style_difference(&style, &back.style) {
            return Some(what);
        }
        let mut layers = self.layers.iter().zip(&back.layers);
        if layers.any(|(layer, back)| layer.sliding_window != back.sliding_window) {
            return Some("sliding windows");
        }
        if self.layers.iter().zip(&back.layers).any(|(layer, back)| layer.experts != back.experts) {
            return Some("experts");
        }
        if self.layers.iter().zip(&back.layers).any(|(layer, other)| {
            let (rope, other) = (self.rope_of(layer), back.rope_of(other));
            rope.is_some() != other.is_some() || rope.zip(other).is_some_and(|(rope, other)| !is_same(rope, other))
        }) {
            return Some("rotary embedding");
        }
        let rest = |layer: &LayerConfig| {
            // Heads of a layer without attention mean nothing.
            let heads = |count: usize| if layer.mixer.has_attention() { count } else { 0 };
            LayerConfig {
                rope: LayerRope::None,
                num_attention_heads: heads(layer.num_attention_heads),
                num_key_value_heads: heads(layer.num_key_value_heads),
                head_dim: heads(layer.head_dim),
                intermediate_size: layer.experts.map_or(layer.intermediate_size, |experts| experts.intermediate_size),
                ..layer.clone()
            }
        };
        let differ = self.layers.iter().zip(&back.layers).any(|(layer, back)| rest(layer) != rest(back));
        differ.then_some("layers")
    }

    fn rope_of(&self, layer: &LayerConfig) -> Option<&RopeConfig> {
        match layer.rope {
            _ if !layer.mixer.has_attention() => None,
            LayerRope::None => None,
            LayerRope::Global => Some(&self.rope),
            LayerRope::Local => self.local_rope.as_ref().or(Some(&self.rope)),
        }
    }
}

/// The first field of the style that differs by more than rounding.
fn style_difference(style: &Style, back: &Style) -> Option<&'static str> {
    let close = |a: f32, b: f32| is_close(a.into(), b.into());
    let both = |a: Option<f32>, b: Option<f32>| a.is_some() == b.is_some() && a.zip(b).is_none_or(|(a, b)| close(a, b));
    let fields = [
        ("activation", style.activation == back.activation && style.gated == back.gated),
        ("norms", (style.norm, style.norms, style.qk_norm) == (back.norm, back.norms, back.qk_norm)),
        ("scale of scores by layer", style.scale_by_layer == back.scale_by_layer),
        ("residual", style.residual == back.residual),
        ("ALiBi", style.alibi == back.alibi),
        ("soft cap of scores", both(style.attention_softcap, back.attention_softcap)),
        ("soft cap of logits", both(style.logit_softcap, back.logit_softcap)),
        ("clamp of queries, keys and values", both(style.clip_qkv, back.clip_qkv)),
        ("clamp of gates", both(style.glu_limit, back.glu_limit)),
        ("scale of embeddings", close(style.embedding_scale, back.embedding_scale)),
        ("scale of residuals", close(style.residual_scale, back.residual_scale)),
        ("scale of logits", close(style.logit_scale, back.logit_scale)),
    ];
    if let Some((what, _)) = fields.into_iter().find(|(_, same)| !same) {
        return Some(what);
    }
    let rest = Style {
        attention_softcap: back.attention_softcap,
        logit_softcap: back.logit_softcap,
        clip_qkv: back.clip_qkv,
        glu_limit: back.glu_limit,
        embedding_scale: back.embedding_scale,
        residual_scale: back.residual_scale,
        logit_scale: back.logit_scale,
        ..*style
    };
    (rest != *back).then_some("layers' way of computing")
}

/// The same rotation and factor at every length, whatever the scheme is called.
fn is_same(rope: &RopeConfig, other: &RopeConfig) -> bool {
    let lengths = [1, 1 << 10, 1 << 14, 1 << 18, 1 << 22];
    let same_at = |length: usize| {
        let ((a, factor), (b, other)) = (rope.frequencies(length), other.frequencies(length));
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| is_close(*a, *b)) && is_close(factor, other)
    };
    let growth = match (rope.query_growth, other.query_growth) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            is_close(a.beta, b.beta) && a.original_max_position_embeddings == b.original_max_position_embeddings
        }
        _ => false,
    };
    rope.rotary_dim == other.rotary_dim && growth && lengths.into_iter().all(same_at)
}

/// Equal but for the rounding of f32 metadata.
fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * a.abs().max(b.abs())
}
