//! Which tensors a config implies, and how large each one is.

use super::{ModelConfig, QkNorm};
use crate::{LayerTensor, TensorId};

impl ModelConfig {
    /// Row-major shape of a tensor, `None` where this model has no such tensor. Never overflows: sizes are bounded
    /// when the config is read.
    pub fn tensor_shape(&self, id: TensorId) -> Option<Vec<usize>> {
        use LayerTensor::*;
        let hidden = self.hidden_size;
        let style = &self.style;
        let (index, tensor) = match id {
            TensorId::TokenEmbedding => return Some(vec![self.vocab_size, hidden]),
            TensorId::PositionEmbedding => {
                return style.position_embedding.map(|unused| vec![unused + self.max_position_embeddings, hidden]);
            }
            TensorId::EmbeddingNorm => return (style.embedding_norm && style.norm.has_gain()).then(|| vec![hidden]),
            TensorId::EmbeddingNormBias => {
                return (style.embedding_norm && style.norm.has_bias()).then(|| vec![hidden]);
            }
            TensorId::OutputNorm => return (style.output_norm && style.norm.has_gain()).then(|| vec![hidden]),
            TensorId::OutputNormBias => return (style.output_norm && style.norm.has_bias()).then(|| vec![hidden]),
            TensorId::Output => return (!self.tie_word_embeddings).then(|| vec![self.vocab_size, hidden]),
            TensorId::OutputBias => return style.output_bias.then(|| vec![self.vocab_size]),
            TensorId::Layer(index, tensor) => (index, tensor),
        };
        let layer = self.layers.get(index)?;
        let q = layer.num_attention_heads * layer.head_dim;
        let kv = layer.num_key_value_heads * layer.head_dim;
        let ffn = layer.intermediate_size;
        let bias = layer.attention_bias;
        let (gain, norm_bias) = (style.norm.has_gain(), style.norm.has_bias());
        let (is_there, shape) = match tensor {
            AttnNorm => (style.norms.attn && gain, vec![hidden]),
            AttnNormBias => (style.norms.attn && norm_bias, vec![hidden]),
            Q => (true, vec![q, hidden]),
            K | V => (true, vec![kv, hidden]),
            QBias => (bias.on_inputs(), vec![q]),
            KBias | VBias => (bias.on_inputs(), vec![kv]),
            QNorm | KNorm | QNormBias | KNormBias => {
                let heads = if matches!(tensor, QNorm | QNormBias) { q } else { kv };
                let (kind, shape) = match style.qk_norm {
                    QkNorm::None => return None,
                    QkNorm::Head(kind) => (kind, vec![layer.head_dim]),
                    QkNorm::OwnHead(kind) => (kind, vec![heads / layer.head_dim, layer.head_dim]),
                    QkNorm::All(kind) => (kind, vec![heads]),
                };
                let is_bias = matches!(tensor, QNormBias | KNormBias);
                (if is_bias { kind.has_bias() } else { kind.has_gain() }, shape)
            }
            Sinks => (style.sinks, vec![layer.num_attention_heads]),
            O => (true, vec![hidden, q]),
            OBias => (bias.on_output(), vec![hidden]),
            PostAttnNorm => (style.norms.post_attn && gain, vec![hidden]),
            FfnNorm => (style.norms.ffn && gain, vec![hidden]),
            FfnNormBias => (style.norms.ffn && norm_bias, vec![hidden]),
            Gate => (style.gated, vec![ffn, hidden]),
            GateBias => (style.gated && layer.mlp_bias, vec![ffn]),
            Up => (true, vec![ffn, hidden]),
            UpBias => (layer.mlp_bias, vec![ffn]),
            Down => (true, vec![hidden, ffn]),
            DownBias => (layer.mlp_bias, vec![hidden]),
            PostFfnNorm => (style.norms.post_ffn && gain, vec![hidden]),
        };
        is_there.then_some(shape)
    }

    /// Every tensor of this model, in walk order: embedding, layers, output norm, output.
    pub fn tensor_ids(&self) -> Vec<TensorId> {
        let layers = (0..self.layers.len())
            .flat_map(|index| LayerTensor::ALL.iter().map(move |&tensor| TensorId::Layer(index, tensor)));
        TensorId::FRONT
            .into_iter()
            .chain(layers)
            .chain(TensorId::BACK)
            .filter(|&id| self.tensor_shape(id).is_some())
            .collect()
    }

    /// Total weights. A tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        let elements = |id: TensorId| self.tensor_shape(id).map_or(0, |shape| shape.iter().product::<usize>() as u64);
        self.tensor_ids().into_iter().map(elements).sum()
    }
}
