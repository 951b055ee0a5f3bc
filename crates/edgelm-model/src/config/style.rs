//! What a decoder layer computes beside the sizes of its matrices.

use edgelm_tensor::Activation;

/// The same for all layers of a model. A family's description gives it, keys of config.json may change it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Every norm of the hidden states.
    pub norm: NormKind,
    /// Where norms stand in a layer.
    pub norms: Norms,
    /// How a layer's two halves are joined to the stream.
    pub residual: Residual,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Queries and keys are rotated before they are normalized, not after.
    pub rope_before_norm: bool,
    /// Of the feed-forward network.
    pub activation: Activation,
    /// down(f(gate(x)) · up(x)), not down(f(up(x))).
    pub gated: bool,
    /// f is xIELU, with four numbers of each layer's own, in the place of `activation`; without a gate (Huang and Schlag 2024,
    /// arXiv:2411.13010). With p = ln(1 + eᵃ), n = β + ln(1 + eᵇ): p x² + β x for x > 0, n (e^min(x, ε) − 1 − x) + β x else.
    pub xielu: bool,
    /// With a gate: gate ≤ c, −c ≤ up ≤ c, and up + 1 in place of up (gpt-oss).
    pub glu_limit: Option<f32>,
    /// A slope per head on the distance between positions, in place of positions (Press et al. 2021, arXiv:2108.12409).
    pub alibi: Option<Alibi>,
    /// One logit per head that takes part in the softmax and has no value (gpt-oss).
    pub sinks: bool,
    /// Multiplies q·k; `None` = 1/√E.
    pub attention_scale: Option<f32>,
    /// q·k is further divided by 1 + the index of the layer.
    pub scale_by_layer: bool,
    /// c in c·tanh(s/c), on attention scores.
    pub attention_softcap: Option<f32>,
    /// What attention returns is multiplied by sigmoids of a product of its own.
    pub output_gate: Option<OutputGate>,
    /// Of products inside a layer.
    pub multipliers: Multipliers,
    /// Queries, keys and values are clamped to ± this.
    pub clip_qkv: Option<f32>,
    /// What attention hands to its output matrix, and what the feed-forward network hands to down, goes through RMS norms with
    /// gains of their own.
    pub sub_norms: bool,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// A norm stands between the embeddings and the first layer.
    pub embedding_norm: bool,
    /// A learned vector per position is added to embeddings; its table starts with this many unused rows.
    pub position_embedding: Option<usize>,
    /// Multiplies what a layer's halves add to the stream.
    pub residual_scale: f32,
    /// There is a norm after the last layer.
    pub output_norm: bool,
    /// The output head has a bias.
    pub output_bias: bool,
    /// Multiplies logits.
    pub logit_scale: f32,
    /// c in c·tanh(x/c), on logits, after their scale.
    pub logit_softcap: Option<f32>,
}

/// Norms of the hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / √(mean x² + ε) · g (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
    /// The same with 1 + g for g.
    RmsPlusOne,
    /// The same without g.
    RmsPlain,
    /// (x − mean x) / √(var x + ε) · g + b (Ba et al. 2016, arXiv:1607.06450).
    Layer,
    /// The same with 1 + g for g.
    LayerPlusOne,
    /// The same without b.
    LayerGain,
    /// The same without g and b.
    LayerPlain,
}

impl NormKind {
    /// The same norm where files hold the whole factor, as GGUF's do.
    pub fn with_whole_gain(self) -> Self {
        match self {
            Self::RmsPlusOne => Self::Rms,
            Self::LayerPlusOne => Self::Layer,
            other => other,
        }
    }

    /// There is a g.
    pub fn has_gain(self) -> bool {
        !matches!(self, Self::RmsPlain | Self::LayerPlain)
    }

    /// There is a b.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::Layer | Self::LayerPlusOne)
    }
}

/// Where a layer has norms: before its attention and feed-forward halves, and on what they return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Norms {
    pub attn: bool,
    pub post_attn: bool,
    pub ffn: bool,
    pub post_ffn: bool,
}

/// How a layer's halves, each with its norms, are joined to the stream h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// h += attn(norm h); h += ffn(norm h).
    Sequential,
    /// h += attn(norm h) + ffn(norm h), both of the same h; one norm for both where the second is missing.
    Parallel,
    /// h = norm h + attn(norm h); h = norm h + ffn(norm h): the stream goes through the norm.
    Normed,
    /// h = norm(h + attn h); h = norm(h + ffn h).
    NormAfter,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Of each head, with one gain [E] for all.
    Head(NormKind),
    /// Of each head, with a gain of its own [H·E].
    OwnHead(NormKind),
    /// Of all heads at once, with a gain [H·E].
    All(NormKind),
}

/// What a sigmoid on the output of attention multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputGate {
    /// One component of one head (Qwen3-Next).
    Component,
    /// A head (LFM3).
    Head,
}

/// Fixed factors inside a layer (Falcon-H1, after Yang et al. 2022, arXiv:2203.03466).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// Of what attention reads.
    pub attention_input: f32,
    /// Of keys.
    pub key: f32,
    /// Of what attention returns.
    pub attention_output: f32,
    /// Of gate(x), before the activation.
    pub gate: f32,
    /// Of down(…).
    pub down: f32,
}

impl Multipliers {
    /// Nothing is multiplied.
    pub const NONE: Self = Self { attention_input: 1.0, key: 1.0, attention_output: 1.0, gate: 1.0, down: 1.0 };
}

impl QkNorm {
    /// What kind of norm, where there is one.
    pub fn kind(self) -> Option<NormKind> {
        match self {
            Self::None => None,
            Self::Head(kind) | Self::OwnHead(kind) | Self::All(kind) => Some(kind),
        }
    }

    /// See [`NormKind::with_whole_gain`].
    pub fn with_whole_gain(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Head(kind) => Self::Head(kind.with_whole_gain()),
            Self::OwnHead(kind) => Self::OwnHead(kind.with_whole_gain()),
            Self::All(kind) => Self::All(kind.with_whole_gain()),
        }
    }
}

/// How ALiBi's slopes act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alibi {
    /// scale · q·k + slope · (s − t).
    Scores,
    /// scale · (q·k + slope · s), with slope and product in bfloat16 (Falcon).
    Falcon,
}

impl Style {
    /// RMS norms before each half of a layer, halves one after the other, a gated feed-forward network, and no clamp
    /// between matrices: what passes rely on that fold factors into neighbours, or take channels out.
    pub fn is_plain(&self) -> bool {
        let norms = Norms { attn: true, post_attn: false, ffn: true, post_ffn: false };
        self.norm == NormKind::Rms
            && self.norms == norms
            && self.residual == Residual::Sequential
            && self.gated
            && !self.xielu
            && self.glu_limit.is_none()
            && self.clip_qkv.is_none()
            && !self.sub_norms
            && self.alibi.is_none()
            && !self.sinks
            && self.output_gate.is_none()
            && self.multipliers == Multipliers::NONE
            && !self.embedding_norm
            && self.position_embedding.is_none()
            && self.output_norm
    }

    /// The same where norms' gains are stored as GGUF files have them.
    pub(super) fn with_whole_gains(self) -> Self {
        Self { norm: self.norm.with_whole_gain(), qk_norm: self.qk_norm.with_whole_gain(), ..self }
    }

    /// Queries and keys know their positions without a rotation.
    pub(super) fn has_no_rotation(&self) -> bool {
        self.alibi.is_some() || self.position_embedding.is_some()
    }

    /// Slope of each of H heads.
    ///
    /// With n the largest power of two that is not above H: 2^(−8i/n) for i = 1 … n, then 2^(−4i/n) for odd i.
    /// Source: Press et al. 2021, arXiv:2108.12409, section 3, and its code for H that is no power of two.
    pub fn alibi_slopes(num_attention_heads: usize) -> Vec<f32> {
        let base = 1 << num_attention_heads.max(1).ilog2();
        let slope = |exponent: f64, i: usize| (-exponent * i as f64 / base as f64).exp2() as f32;
        (1..=base)
            .map(|i| slope(8.0, i))
            .chain((1..).step_by(2).map(|i| slope(4.0, i)))
            .take(num_attention_heads)
            .collect()
    }
}
