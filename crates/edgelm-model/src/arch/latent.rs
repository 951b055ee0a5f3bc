//! Keys of config.json about latent attention, as the families that have it share them.

use super::{
    Names, Order,
    names::{GGUF, gguf_layer, llama_layer},
};
use crate::config::{Keys, LatentAttention, MAX_HEAD_DIM, MAX_INTERMEDIATE, Mixer, RopeScaling};
use crate::{LayerTensor, ModelConfig, ModelError};
use serde_json::Value;

/// What llama.cpp's older files call them, and those of MiniCPM3: what makes keys and values in one tensor.
pub(super) const GGUF_FUSED: Names = Names {
    layer: |tensor| match tensor {
        LayerTensor::LatentK | LayerTensor::LatentV => "attn_kv_b",
        other => gguf_layer(other),
    },
    fused: NAMES.fused,
    ..GGUF
};

/// What DeepSeek's files call these tensors.
pub(super) const NAMES: Names = Names {
    layer,
    fused: &[(&[LayerTensor::LatentK, LayerTensor::LatentV], Order::PerHead)],
    ..super::llama::LLAMA.hf_names
};

fn layer(tensor: LayerTensor) -> &'static str {
    use LayerTensor::*;
    match tensor {
        LatentK | LatentV => "self_attn.kv_b_proj",
        Router => "mlp.gate",
        SharedGate => "mlp.shared_experts.gate_proj",
        SharedUp => "mlp.shared_experts.up_proj",
        SharedDown => "mlp.shared_experts.down_proj",
        other => llama_layer(other),
    }
}

/// The family must have an alias that makes `qk_rope_head_dim` its `head_dim`, so that the rotary embedding is as wide; later
/// configs state both.
pub(super) fn read(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let rope_dim = keys.required_size("qk_rope_head_dim", MAX_HEAD_DIM)?;
    if keys.required_size("head_dim", MAX_HEAD_DIM)? != rope_dim {
        return Err(keys.bad("head_dim", &format!("is not `qk_rope_head_dim` {rope_dim}")));
    }
    let nope_dim = keys.required_size("qk_nope_head_dim", MAX_HEAD_DIM)?;
    let heads = config.layers.first().map_or(1, |layer| layer.num_attention_heads);
    let latent = LatentAttention {
        heads,
        query_rank: keys.size("q_lora_rank", MAX_INTERMEDIATE)?,
        rank: keys.required_size("kv_lora_rank", MAX_HEAD_DIM)?,
        nope_dim,
        rope_dim,
        value_dim: keys.size("v_head_dim", MAX_HEAD_DIM)?.unwrap_or(config.hidden_size / heads),
        transposed_keys: false,
    };
    if keys.size("qk_head_dim", MAX_HEAD_DIM)?.is_some_and(|width| width != nope_dim + rope_dim) {
        return Err(keys.bad("qk_head_dim", &format!("is not {nope_dim} + {rope_dim}")));
    }
    for layer in &mut config.layers {
        if layer.num_attention_heads != heads {
            return Err(keys.bad("num_attention_heads", "must be the same in all layers with latent attention"));
        }
        layer.mixer = Mixer::LatentAttention(latent);
        (layer.num_key_value_heads, layer.head_dim) = (1, latent.width());
    }
    let scale = 1.0 / ((nope_dim + rope_dim) as f64).sqrt();
    config.style.attention_scale = Some((scale * read_growth(keys, config)) as f32);
    Ok(())
}

/// With YaRN, scores are multiplied by (0.1 · `mscale_all_dim` · ln factor + 1)².
fn read_growth(keys: &mut Keys<'_>, config: &ModelConfig) -> f64 {
    let RopeScaling::Yarn { factor, .. } = config.rope.scaling else { return 1.0 };
    let parameters = keys.get("rope_scaling").or(keys.get("rope_parameters"));
    let all_dims = parameters.and_then(|map| map.get("mscale_all_dim")).and_then(Value::as_f64).unwrap_or(0.0);
    (0.1 * all_dims * factor.max(1.0).ln() + 1.0).powi(2)
}
