//! Which tensors a config implies, and how large each one is.

use super::{AttentionBias, ModelConfig};
use crate::{LayerTensor, TensorId};

impl ModelConfig {
    /// Row-major shape of a tensor, `None` where this model has no such tensor. Never overflows: sizes are bounded
    /// when the config is read.
    pub fn tensor_shape(&self, id: TensorId) -> Option<Vec<usize>> {
        use LayerTensor::*;
        let hidden = self.hidden_size;
        let (index, tensor) = match id {
            TensorId::TokenEmbedding => return Some(vec![self.vocab_size, hidden]),
            TensorId::OutputNorm => return Some(vec![hidden]),
            TensorId::Output => return (!self.tie_word_embeddings).then(|| vec![self.vocab_size, hidden]),
            TensorId::Layer(index, tensor) => (index, tensor),
        };
        let layer = self.layers.get(index)?;
        let q = layer.num_attention_heads * layer.head_dim;
        let kv = layer.num_key_value_heads * layer.head_dim;
        let ffn = layer.intermediate_size;
        let qkv_bias = layer.attention_bias != AttentionBias::None;
        Some(match tensor {
            AttnNorm | FfnNorm => vec![hidden],
            Q => vec![q, hidden],
            K | V => vec![kv, hidden],
            O => vec![hidden, q],
            Gate | Up => vec![ffn, hidden],
            Down => vec![hidden, ffn],
            QNorm | KNorm if self.arch.qk_norm => vec![layer.head_dim],
            QBias if qkv_bias => vec![q],
            KBias | VBias if qkv_bias => vec![kv],
            OBias if layer.attention_bias == AttentionBias::Qkvo => vec![hidden],
            GateBias | UpBias if layer.mlp_bias => vec![ffn],
            DownBias if layer.mlp_bias => vec![hidden],
            _ => return None,
        })
    }

    /// Every tensor of this model, in walk order: embedding, layers, output norm, output.
    pub fn tensor_ids(&self) -> Vec<TensorId> {
        let layers = (0..self.layers.len())
            .flat_map(|index| LayerTensor::ALL.iter().map(move |&tensor| TensorId::Layer(index, tensor)));
        std::iter::once(TensorId::TokenEmbedding)
            .chain(layers)
            .chain([TensorId::OutputNorm, TensorId::Output])
            .filter(|&id| self.tensor_shape(id).is_some())
            .collect()
    }

    /// Total weights. A tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        let elements = |id: TensorId| self.tensor_shape(id).map_or(0, |shape| shape.iter().product::<usize>() as u64);
        self.tensor_ids().into_iter().map(elements).sum()
    }
}
