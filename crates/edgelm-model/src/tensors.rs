//! Canonical tensor identities, and the order in which a model is walked.

/// A tensor's role, the same whatever file it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// [V, D].
    TokenEmbedding,
    /// In decoder layer `.0`.
    Layer(usize, LayerTensor),
    /// [D].
    OutputNorm,
    /// [V, D]; absent where tied.
    Output,
}

/// A tensor's role inside a decoder layer. Weights are [out, in].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LayerTensor {
    AttnNorm,
    Q,
    QBias,
    K,
    KBias,
    V,
    VBias,
    QNorm,
    KNorm,
    O,
    OBias,
    FfnNorm,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
}

impl LayerTensor {
    /// Every role, in the order in which a layer is walked.
    pub const ALL: [LayerTensor; 18] = {
        use LayerTensor::*;
        [
            AttnNorm, Q, QBias, K, KBias, V, VBias, QNorm, KNorm, O, OBias, FfnNorm, Gate, GateBias, Up, UpBias, Down,
            DownBias,
        ]
    };

    /// True for the matrices that are quantized.
    pub fn is_linear(self) -> bool {
        use LayerTensor::*;
        matches!(self, Q | K | V | O | Gate | Up | Down)
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
    /// True for matrices (linear layers, embedding, output head).
    pub fn is_matrix(self) -> bool {
        match self {
            TensorId::TokenEmbedding | TensorId::Output => true,
            TensorId::OutputNorm => false,
            TensorId::Layer(_, tensor) => tensor.is_linear(),
        }
    }
}
