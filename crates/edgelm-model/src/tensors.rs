//! Canonical tensor identities, and the order in which a model is walked.

/// A tensor's role, the same whatever file it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// [V, W], W the width of embeddings (D but in the smallest OPT).
    TokenEmbedding,
    /// [D, W].
    InputProjection,
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
    /// [W, D].
    OutputProjection,
    /// [V, W]; absent where tied.
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
    /// Of the gate on what attention returns.
    QGate,
    QGateBias,
    QNorm,
    QNormBias,
    KNorm,
    KNormBias,
    Sinks,
    /// [H·E], before O.
    AttnSubNorm,
    /// Of latent attention: what queries are made of.
    QDown,
    QDownNorm,
    QUp,
    /// Of latent attention: what keys and values are made of, and the part of keys that turns.
    Latent,
    LatentNorm,
    LatentK,
    LatentV,
    O,
    OBias,
    /// Of a mixer that is not attention: all it convolves, or (Mamba-2) all it takes from its input.
    MixerIn,
    MixerInBias,
    /// Of a gated delta net: z.
    MixerGate,
    /// Of a gated delta net: β.
    MixerBeta,
    /// Of a gated delta net: what the decay follows.
    MixerDecay,
    /// [C, 1, K], the last tap is the present.
    Conv,
    ConvBias,
    /// log(-A).
    DecayLog,
    /// D of Mamba-2.
    Skip,
    /// Added to time steps, and to what a decay follows.
    StepBias,
    MixerNorm,
    MixerOut,
    MixerOutBias,
    PostAttnNorm,
    FfnNorm,
    FfnNormBias,
    Gate,
    GateBias,
    Up,
    UpBias,
    /// [F], before down.
    FfnSubNorm,
    Down,
    DownBias,
    /// a of xIELU [1].
    XieluPositive,
    /// b of xIELU [1].
    XieluNegative,
    /// β of xIELU, one number.
    XieluSlope,
    /// ε of xIELU, one number.
    XieluFloor,
    Router,
    RouterBias,
    /// Added to the scores that experts are chosen by, not to those that they are weighted with.
    SelectionBias,
    /// Of the gate on the shared expert.
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    /// Of one expert, by its number.
    Expert(u16, ExpertTensor),
    PostFfnNorm,
}

/// A tensor's role inside an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum ExpertTensor {
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
}

impl ExpertTensor {
    /// Every role, in the order in which an expert is walked.
    pub const ALL: [Self; 6] = [Self::Gate, Self::GateBias, Self::Up, Self::UpBias, Self::Down, Self::DownBias];

    /// The role in a feed-forward network that is not one of many.
    pub fn dense(self) -> LayerTensor {
        match self {
            Self::Gate => LayerTensor::Gate,
            Self::GateBias => LayerTensor::GateBias,
            Self::Up => LayerTensor::Up,
            Self::UpBias => LayerTensor::UpBias,
            Self::Down => LayerTensor::Down,
            Self::DownBias => LayerTensor::DownBias,
        }
    }
}

impl LayerTensor {
    /// Every role but those of experts, of which each model has its own number; in the order in which a layer is walked.
    pub const ALL: [LayerTensor; 60] = {
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
            QGate,
            QGateBias,
            QNorm,
            QNormBias,
            KNorm,
            KNormBias,
            Sinks,
            AttnSubNorm,
            QDown,
            QDownNorm,
            QUp,
            Latent,
            LatentNorm,
            LatentK,
            LatentV,
            O,
            OBias,
            MixerIn,
            MixerInBias,
            MixerGate,
            MixerBeta,
            MixerDecay,
            Conv,
            ConvBias,
            DecayLog,
            Skip,
            StepBias,
            MixerNorm,
            MixerOut,
            MixerOutBias,
            PostAttnNorm,
            FfnNorm,
            FfnNormBias,
            Gate,
            GateBias,
            Up,
            UpBias,
            FfnSubNorm,
            Down,
            DownBias,
            XieluPositive,
            XieluNegative,
            XieluSlope,
            XieluFloor,
            Router,
            RouterBias,
            SelectionBias,
            SharedRouter,
            SharedGate,
            SharedUp,
            SharedDown,
            PostFfnNorm,
        ]
    };

    /// True for the matrices that are quantized.
    pub fn is_linear(self) -> bool {
        use LayerTensor::*;
        match self {
            Q | K | V | QGate | QDown | QUp | Latent | LatentK | LatentV | O | MixerIn | MixerGate | MixerOut => true,
            Gate | Up | Down | SharedGate | SharedUp | SharedDown => true,
            Expert(_, part) => part.dense().is_linear(),
            _ => false,
        }
    }

    /// True for what takes part in a product of matrices as a whole, quantized or not: not for what latent attention uses head
    /// by head.
    pub fn is_multiplied(self) -> bool {
        use LayerTensor::*;
        self.is_linear() && !matches!(self, LatentK | LatentV)
            || matches!(self, Router | SharedRouter | MixerBeta | MixerDecay)
    }

    /// True for what only layers with attention have.
    pub fn is_of_attention(self) -> bool {
        use LayerTensor::*;
        let is_latent = matches!(self, QDown | QDownNorm | QUp | Latent | LatentNorm | LatentK | LatentV);
        is_latent || matches!(self.weight(), Q | K | V | QGate | QNorm | KNorm | Sinks | AttnSubNorm | O)
    }

    /// True for the matrices of the shared expert.
    pub fn is_shared(self) -> bool {
        matches!(self, LayerTensor::SharedGate | LayerTensor::SharedUp | LayerTensor::SharedDown)
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
            QGateBias => QGate,
            QNormBias => QNorm,
            KNormBias => KNorm,
            OBias => O,
            MixerInBias => MixerIn,
            ConvBias => Conv,
            MixerOutBias => MixerOut,
            FfnNormBias => FfnNorm,
            GateBias => Gate,
            UpBias => Up,
            DownBias => Down,
            RouterBias => Router,
            Expert(expert, ExpertTensor::GateBias) => Expert(expert, ExpertTensor::Gate),
            Expert(expert, ExpertTensor::UpBias) => Expert(expert, ExpertTensor::Up),
            Expert(expert, ExpertTensor::DownBias) => Expert(expert, ExpertTensor::Down),
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
            QGate => QGateBias,
            O => OBias,
            MixerIn => MixerInBias,
            MixerOut => MixerOutBias,
            Gate => GateBias,
            Up => UpBias,
            Down => DownBias,
            Router => RouterBias,
            Expert(expert, ExpertTensor::Gate) => Expert(expert, ExpertTensor::GateBias),
            Expert(expert, ExpertTensor::Up) => Expert(expert, ExpertTensor::UpBias),
            Expert(expert, ExpertTensor::Down) => Expert(expert, ExpertTensor::DownBias),
            _ => return None,
        })
    }
}

impl TensorId {
    /// Roles before the layers, in the order in which a model is walked.
    pub const FRONT: [TensorId; 5] = [
        Self::TokenEmbedding,
        Self::InputProjection,
        Self::PositionEmbedding,
        Self::EmbeddingNorm,
        Self::EmbeddingNormBias,
    ];

    /// Roles after the layers.
    pub const BACK: [TensorId; 5] =
        [Self::OutputNorm, Self::OutputNormBias, Self::OutputProjection, Self::Output, Self::OutputBias];

    /// True for matrices (linear layers, embedding, output head).
    pub fn is_matrix(self) -> bool {
        match self {
            TensorId::TokenEmbedding | TensorId::Output => true,
            TensorId::Layer(_, tensor) => tensor.is_linear(),
            _ => false,
        }
    }
}
