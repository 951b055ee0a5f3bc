//! Canonical tensor identities, and the order in which a model is walked.

/// A tensor's role, the same whatever file it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// [V, D].
    TokenEmbedding,
    /// [unused rows + P, D].
    PositionEmbedding,
    /// [D], between the embeddings and the first layer.
    EmbeddingNorm,
    /// [D].
    EmbeddingNormBias,
    /// In decoder layer `.0`.
    Layer(usize, LayerTensor),
    /// [D].
    OutputNorm,
    /// [D].
    OutputNormBias,
    /// [V, D]; absent where tied.
    Output,
    /// [V].
    OutputBias,
}

/// A tensor's role inside a decoder layer. Weights are [out, in].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LayerTensor {
    AttnNorm,
    AttnNormBias,
    Q,
    QBias,
    K,
    KBias,
    V,
    VBias,
    QNorm,
    QNormBias,
    KNorm,
    KNormBias,
    Sinks,
    O,
    OBias,
    PostAttnNorm,
    FfnNorm,
    FfnNormBias,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
    PostFfnNorm,
}

impl LayerTensor {
    /// Every role, in the order in which a layer is walked.
    pub const ALL: [LayerTensor; 25] = {
        use LayerTensor::*;
        [
            AttnNorm,
            AttnNormBias,
            Q,
            QBias,
            K,
            KBias,
            V,
            VBias,
            QNorm,
            QNormBias,
            KNorm,
            KNormBias,
            Sinks,
            O,
            OBias,
            PostAttnNorm,
            FfnNorm,
            FfnNormBias,
            Gate,
            GateBias,
            Up,
            UpBias,
            Down,
            DownBias,
            PostFfnNorm,
        ]
    };

    /// True for the matrices that are quantized.
    pub fn is_linear(self) -> bool {
        use LayerTensor::*;
        matches!(self, Q | K | V | O | Gate | Up | Down)
    }

    /// True for biases, of linear layers and of norms.
    pub fn is_bias(self) -> bool {
        self.weight() != self
    }

    /// What a bias belongs to; all else is its own.
    pub fn weight(self) -> LayerTensor {
        use LayerTensor::*;
        match self {
            AttnNormBias => AttnNorm,
            QBias => Q,
            KBias => K,
            VBias => V,
            QNormBias => QNorm,
            KNormBias => KNorm,
            OBias => O,
            FfnNormBias => FfnNorm,
            GateBias => Gate,
            UpBias => Up,
            DownBias => Down,
            other => other,
        }
    }

    /// The bias added to a linear layer's output.
    pub fn bias(self) -> Option<LayerTensor> {
        use LayerTensor::*;
        Some(match self {
            Q => QBias,
            K => KBias,
            V => VBias,
            O => OBias,
            Gate => GateBias,
            Up => UpBias,
            Down => DownBias,
            _ => return None,
        })
    }
}

impl TensorId {
    /// Roles before the layers, in the order in which a model is walked.
    pub const FRONT: [TensorId; 4] =
        [Self::TokenEmbedding, Self::PositionEmbedding, Self::EmbeddingNorm, Self::EmbeddingNormBias];

    /// Roles after the layers.
    pub const BACK: [TensorId; 4] = [Self::OutputNorm, Self::OutputNormBias, Self::Output, Self::OutputBias];

    /// True for matrices (linear layers, embedding, output head).
    pub fn is_matrix(self) -> bool {
        match self {
            TensorId::TokenEmbedding | TensorId::Output => true,
            TensorId::Layer(_, tensor) => tensor.is_linear(),
            _ => false,
        }
    }
}
