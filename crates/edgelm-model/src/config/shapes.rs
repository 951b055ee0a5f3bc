//! Which tensors a config implies, and how large each one is.

use super::{GatedNorm, LatentAttention, Mixer, ModelConfig, OutputGate, QkNorm};
use crate::{ExpertTensor, Experts, LayerTensor, TensorId};

impl ModelConfig {
    /// Row-major shape of a tensor, `None` where this model has no such tensor. Never overflows: sizes are bounded
    /// when the config is read.
    pub fn tensor_shape(&self, id: TensorId) -> Option<Vec<usize>> {
        use LayerTensor::*;
        let hidden = self.hidden_size;
        let style = &self.style;
        let (index, tensor) = match id {
            TensorId::TokenEmbedding => return Some(vec![self.vocab_size, self.embedding_size]),
            TensorId::InputProjection => {
                return (self.embedding_size != hidden).then(|| vec![hidden, self.embedding_size]);
            }
            TensorId::OutputProjection => {
                return (self.embedding_size != hidden).then(|| vec![self.embedding_size, hidden]);
            }
            TensorId::PositionEmbedding => {
                return style.position_embedding.map(|unused| vec![unused + self.max_position_embeddings, hidden]);
            }
            TensorId::EmbeddingNorm => return (style.embedding_norm && style.norm.has_gain()).then(|| vec![hidden]),
            TensorId::EmbeddingNormBias => {
                return (style.embedding_norm && style.norm.has_bias()).then(|| vec![hidden]);
            }
            TensorId::OutputNorm => return (style.output_norm && style.norm.has_gain()).then(|| vec![hidden]),
            TensorId::OutputNormBias => return (style.output_norm && style.norm.has_bias()).then(|| vec![hidden]),
            TensorId::Output => return (!self.tie_word_embeddings).then(|| vec![self.vocab_size, self.embedding_size]),
            TensorId::OutputBias => return style.output_bias.then(|| vec![self.vocab_size]),
            TensorId::Layer(index, tensor) => (index, tensor),
        };
        let layer = self.layers.get(index)?;
        if tensor.is_of_attention() {
            match layer.mixer {
                Mixer::LatentAttention(latent) => return latent_shape(latent, hidden, tensor),
                _ if !layer.mixer.has_attention() => return None,
                _ => {}
            }
        }
        let q = layer.num_attention_heads * layer.head_dim;
        let kv = layer.num_key_value_heads * layer.head_dim;
        let ffn = layer.intermediate_size;
        let bias = layer.attention_bias;
        let dense = layer.experts.is_none() && ffn > 0;
        let (gain, norm_bias) = (style.norm.has_gain(), style.norm.has_bias());
        let (is_there, shape) = match tensor {
            AttnNorm => (style.norms.attn && gain, vec![hidden]),
            AttnNormBias => (style.norms.attn && norm_bias, vec![hidden]),
            Q => (true, vec![q, hidden]),
            QGate | QGateBias => {
                let rows = match style.output_gate? {
                    OutputGate::Component => q,
                    OutputGate::Head => layer.num_attention_heads,
                };
                match tensor {
                    QGate => (true, vec![rows, hidden]),
                    // It has one where it is stored with Q.
                    _ => (style.output_gate == Some(OutputGate::Component) && bias.on_inputs(), vec![rows]),
                }
            }
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
            QDown | QDownNorm | QUp | Latent | LatentNorm | LatentK | LatentV => return None,
            Sinks => (style.sinks, vec![layer.num_attention_heads]),
            AttnSubNorm => (style.sub_norms, vec![q]),
            O => (true, vec![hidden, q]),
            OBias => (bias.on_output(), vec![hidden]),
            MixerIn | MixerInBias | MixerGate | MixerBeta | MixerDecay | Conv | ConvBias | DecayLog | Skip
            | StepBias | MixerNorm | MixerOut | MixerOutBias => return mixer_shape(&layer.mixer, hidden, tensor),
            PostAttnNorm => (style.norms.post_attn && gain, vec![hidden]),
            FfnNorm => (style.norms.ffn && gain, vec![hidden]),
            FfnNormBias => (style.norms.ffn && norm_bias, vec![hidden]),
            Gate => (dense && style.gated, vec![ffn, hidden]),
            GateBias => (dense && style.gated && layer.mlp_bias, vec![ffn]),
            Up => (dense, vec![ffn, hidden]),
            UpBias => (dense && layer.mlp_bias, vec![ffn]),
            FfnSubNorm => (dense && style.sub_norms, vec![ffn]),
            Down => (dense, vec![hidden, ffn]),
            DownBias => (dense && layer.mlp_bias, vec![hidden]),
            XieluPositive | XieluNegative | XieluSlope | XieluFloor => (dense && style.xielu, vec![1]),
            Router | RouterBias | SelectionBias | SharedRouter | SharedGate | SharedUp | SharedDown | Expert(..) => {
                return layer.experts.and_then(|experts| expert_shape(&experts, hidden, style.gated, tensor));
            }
            PostFfnNorm => (style.norms.post_ffn && gain, vec![hidden]),
        };
        is_there.then_some(shape)
    }

    /// Every tensor of this model, in walk order: embedding, layers, output norm, output.
    pub fn tensor_ids(&self) -> Vec<TensorId> {
        let ids = |index| self.layer_tensors(index).into_iter().map(move |tensor| TensorId::Layer(index, tensor));
        let layers = (0..self.layers.len()).flat_map(ids);
        TensorId::FRONT
            .into_iter()
            .chain(layers)
            .chain(TensorId::BACK)
            .filter(|&id| self.tensor_shape(id).is_some())
            .collect()
    }

    /// Every tensor of a layer, in walk order.
    pub fn layer_tensors(&self, index: usize) -> Vec<LayerTensor> {
        let experts = self.layers.get(index).and_then(|layer| layer.experts).map_or(0, |experts| experts.count);
        let of = |expert: usize| ExpertTensor::ALL.map(|part| LayerTensor::Expert(expert as u16, part));
        let is_there = |tensor: &LayerTensor| self.tensor_shape(TensorId::Layer(index, *tensor)).is_some();
        LayerTensor::ALL.into_iter().chain((0..experts).flat_map(of)).filter(is_there).collect()
    }

    /// Total weights. A tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        let elements = |id: TensorId| self.tensor_shape(id).map_or(0, |shape| shape.iter().product::<usize>() as u64);
        self.tensor_ids().into_iter().map(elements).sum()
    }
}

fn latent_shape(latent: LatentAttention, hidden: usize, tensor: LayerTensor) -> Option<Vec<usize>> {
    use LayerTensor::*;
    let LatentAttention { heads, query_rank, rank, nope_dim, value_dim, transposed_keys, .. } = latent;
    let queries = heads * latent.query_dim();
    let (is_there, shape) = match tensor {
        Q => (query_rank.is_none(), vec![queries, hidden]),
        QDown => (true, vec![query_rank?, hidden]),
        QDownNorm => (true, vec![query_rank?]),
        QUp => (true, vec![queries, query_rank?]),
        Latent => (true, vec![latent.width(), hidden]),
        LatentNorm => (true, vec![rank]),
        LatentK if transposed_keys => (true, vec![heads * rank, nope_dim]),
        LatentK => (true, vec![heads * nope_dim, rank]),
        LatentV => (true, vec![heads * value_dim, rank]),
        O => (true, vec![hidden, heads * value_dim]),
        _ => return None,
    };
    is_there.then_some(shape)
}

fn mixer_shape(mixer: &Mixer, hidden: usize, tensor: LayerTensor) -> Option<Vec<usize>> {
    use LayerTensor::*;
    let (is_there, shape) = match mixer {
        Mixer::Attention | Mixer::LatentAttention(_) => return None,
        Mixer::ShortConv(conv) => {
            let channels = conv.channels;
            match tensor {
                MixerIn => (true, vec![3 * channels, hidden]),
                MixerInBias => (conv.bias, vec![3 * channels]),
                Conv => (true, vec![channels, 1, conv.kernel]),
                ConvBias => (conv.bias, vec![channels]),
                MixerOut => (true, vec![hidden, channels]),
                MixerOutBias => (conv.bias, vec![hidden]),
                _ => return None,
            }
        }
        Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(mamba) => {
            let (width, channels) = (mamba.width(), mamba.channels());
            let all = width + channels + mamba.heads;
            match tensor {
                MixerIn => (true, vec![all, hidden]),
                MixerInBias => (mamba.in_bias, vec![all]),
                Conv => (true, vec![channels, 1, mamba.kernel]),
                ConvBias => (mamba.conv_bias, vec![channels]),
                DecayLog | Skip | StepBias => (true, vec![mamba.heads]),
                MixerNorm => (mamba.norm != GatedNorm::None, vec![width]),
                MixerOut => (true, vec![hidden, width]),
                MixerOutBias => (mamba.out_bias, vec![hidden]),
                _ => return None,
            }
        }
        Mixer::DeltaNet(net) => {
            let (channels, width) = (net.channels(), net.value_width());
            match tensor {
                MixerIn => (true, vec![channels, hidden]),
                MixerGate => (true, vec![width, hidden]),
                MixerBeta | MixerDecay => (true, vec![net.value_heads, hidden]),
                Conv => (true, vec![channels, 1, net.kernel]),
                DecayLog | StepBias => (true, vec![net.value_heads]),
                MixerNorm => (true, vec![net.value_dim]),
                MixerOut => (true, vec![hidden, width]),
                _ => return None,
            }
        }
    };
    is_there.then_some(shape)
}

fn expert_shape(experts: &Experts, hidden: usize, gated: bool, tensor: LayerTensor) -> Option<Vec<usize>> {
    use LayerTensor::*;
    let (ffn, shared) = (experts.intermediate_size, experts.shared);
    let (is_there, shape) = match tensor {
        Router => (true, vec![experts.count, hidden]),
        RouterBias => (experts.routing.bias, vec![experts.count]),
        SelectionBias => (experts.routing.selection_bias, vec![experts.count]),
        SharedRouter => (experts.shared_gate, vec![1, hidden]),
        SharedGate => (shared.is_some() && gated, vec![shared?, hidden]),
        SharedUp => (shared.is_some(), vec![shared?, hidden]),
        SharedDown => (shared.is_some(), vec![hidden, shared?]),
        Expert(expert, _) if usize::from(expert) >= experts.count => return None,
        Expert(_, ExpertTensor::Gate) => (gated, vec![ffn, hidden]),
        Expert(_, ExpertTensor::GateBias) => (gated && experts.bias, vec![ffn]),
        Expert(_, ExpertTensor::Up) => (true, vec![ffn, hidden]),
        Expert(_, ExpertTensor::UpBias) => (experts.bias, vec![ffn]),
        Expert(_, ExpertTensor::Down) => (true, vec![hidden, ffn]),
        Expert(_, ExpertTensor::DownBias) => (experts.bias, vec![hidden]),
        _ => return None,
    };
    is_there.then_some(shape)
}
