//! What a style can express: asked by the exporter before anything is written, and by the table of models.

use edgelm_model::{LayerConfig, Mixer, ModelConfig, RopeConfig, RopeScaling};

/// Which operators a graph is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxStyle {
    /// Those of ONNX Runtime for decoders, and the files that `onnxruntime-genai` reads.
    Genai,
    /// Standard ones, weights behind `DequantizeLinear`.
    Qdq,
}

impl std::fmt::Display for OnnxStyle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Genai => "genai",
            Self::Qdq => "qdq",
        })
    }
}

/// What of a model a style cannot express; `None` if it can express all of it.
pub fn unsupported(config: &ModelConfig, style: OnnxStyle) -> Option<String> {
    if config.layers.is_empty() {
        return Some("it has no layers".to_owned());
    }
    for (index, layer) in config.layers.iter().enumerate() {
        if layer.mixer != Mixer::Attention {
            return Some(format!("layer {index} is not attention alone"));
        }
        if let Some(what) = (style == OnnxStyle::Genai).then(|| of_fused(config, index)).flatten() {
            return Some(what);
        }
    }
    None
}

/// What GroupQueryAttention and `onnxruntime-genai` ask for.
fn of_fused(config: &ModelConfig, index: usize) -> Option<String> {
    let (layer, first) = (&config.layers[index], &config.layers[0]);
    let shape = (layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim);
    if shape != (first.num_attention_heads, first.num_key_value_heads, first.head_dim) {
        // One shape of caches is stated for all layers.
        return Some(format!("layer {index} has other heads than the first (`qdq` has caches of their own)"));
    }
    None
}

/// GroupQueryAttention can rotate queries and keys itself.
pub(crate) fn rotates_inside(config: &ModelConfig, layer: &LayerConfig, rope: &RopeConfig) -> bool {
    let is_table = !matches!(rope.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. });
    let is_before_norm = config.style.rope_before_norm && config.style.qk_norm.kind().is_some();
    is_table && !is_before_norm && layer.head_dim.is_multiple_of(16) && rope.rotary_dim.is_multiple_of(16)
}
