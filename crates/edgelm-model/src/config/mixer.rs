//! What lets the positions of a sequence see each other, where it is not attention alone.
//!
//! The one thing a reader would get wrong: of the past these keep a state of fixed size, which cannot be rewound.

/// What a layer has in the place of its first half.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Mixer {
    Attention,
    LatentAttention(LatentAttention),
    ShortConv(ShortConv),
    DeltaNet(DeltaNet),
    Mamba2(Mamba2),
    /// Attention and Mamba-2, both of the same input, their results added (Falcon-H1).
    AttentionAndMamba2(Mamba2),
}

/// Attention whose keys and values are kept as one short vector per position (DeepSeek-AI 2024, arXiv:2405.04434).
///
/// c = norm(latent(x)) [r]; k = latent_k(c) ‖ rope(k'), v = latent_v(c), with k' [R] the rest of latent(x), the same for all
/// heads; q = up(norm(down(x))), or of one matrix, of which the last R components turn. Scores are q·k = (latent_kᵀ q)·c + …,
/// so c and k' are all that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentAttention {
    /// H.
    pub heads: usize,
    /// Of what queries are made of, where they are made in two steps.
    pub query_rank: Option<usize>,
    /// r.
    pub rank: usize,
    /// Components of a query that do not turn.
    pub nope_dim: usize,
    /// R.
    pub rope_dim: usize,
    /// Components of a value.
    pub value_dim: usize,
    /// latent_k is [r, nope] for each head, as queries use it, not [nope, r] (GGUF).
    pub transposed_keys: bool,
}

impl LatentAttention {
    /// Components that are kept of a position: r + R.
    pub fn width(&self) -> usize {
        self.rank + self.rope_dim
    }

    /// Components of a query.
    pub fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }
}

/// out(c · conv(b · x)) with b, c, x = in(h): gates around a convolution over K positions (LFM2, arXiv:2511.23404).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConv {
    /// C.
    pub channels: usize,
    /// K.
    pub kernel: usize,
    /// In, convolution and out have biases.
    pub bias: bool,
}

/// A state per head that decays at a rate each position chooses (Dao and Gu 2024, arXiv:2405.21060).
///
/// z, x‖B‖C, dt = in(input_scale · h) · scales; x, B, C = f(conv(x‖B‖C)); y = scan(x, B, C, dt); out(norm(y, z)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba2 {
    /// H.
    pub heads: usize,
    /// P.
    pub head_dim: usize,
    /// G; each has its own B and C.
    pub groups: usize,
    /// N.
    pub state_size: usize,
    /// K.
    pub kernel: usize,
    /// The convolution has a bias.
    pub conv_bias: bool,
    /// The projection of the input has a bias.
    pub in_bias: bool,
    /// The projection of the output has a bias.
    pub out_bias: bool,
    /// How y and z meet.
    pub norm: GatedNorm,
    /// Least and largest time step.
    pub time_step_limit: (f32, f32),
    /// Multiplies the input.
    pub input_scale: f32,
    /// Multiply z, x, B, C and dt.
    pub scales: [f32; 5],
    /// Multiplies the output.
    pub output_scale: f32,
    /// How files store A.
    pub decay: Decay,
}

/// How files store A, the rates at which states decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// log(−A).
    Log,
    /// A itself, below 0 (GGUF).
    Whole,
}

impl Decay {
    /// A, out of what is stored.
    pub fn rate(self, stored: f32) -> f32 {
        match self {
            Self::Log => -stored.exp(),
            Self::Whole => stored,
        }
    }
}

/// How the result of a scan is gated by z; the norm is an RMS norm of each group with its own gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedNorm {
    /// y · silu(z).
    None,
    /// norm(y · silu(z)).
    AfterGate,
    /// norm(y) · silu(z).
    BeforeGate,
}

/// A matrix per head that forgets, and corrects what it answers to a key (Yang et al. 2024, arXiv:2412.06464).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaNet {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Components of a query and a key.
    pub key_dim: usize,
    /// Heads of values; a multiple of those of keys.
    pub value_heads: usize,
    /// Components of a value.
    pub value_dim: usize,
    /// K.
    pub kernel: usize,
    /// How files store A.
    pub decay: Decay,
    /// Which heads of values share a head of keys.
    pub order: ValueOrder,
}

/// Which heads of values share a head of keys, with r of them for each of G.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueOrder {
    /// Head h belongs to h / r.
    Grouped,
    /// Head h belongs to h mod G (llama.cpp's Qwen3.5).
    Tiled,
}

/// How many values a sequence keeps for a layer, however long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSize {
    /// Inputs of the convolution [K-1, C].
    pub conv: usize,
    /// States of all heads.
    pub recurrent: usize,
}

impl Mixer {
    /// There are queries, keys and values.
    pub fn has_attention(&self) -> bool {
        matches!(self, Self::Attention | Self::LatentAttention(_) | Self::AttentionAndMamba2(_))
    }

    /// What a sequence keeps beside keys and values; `None` where that is nothing.
    pub fn state(&self) -> Option<StateSize> {
        match self {
            Self::Attention | Self::LatentAttention(_) => None,
            Self::ShortConv(conv) => Some(StateSize { conv: (conv.kernel - 1) * conv.channels, recurrent: 0 }),
            Self::Mamba2(mamba) | Self::AttentionAndMamba2(mamba) => Some(StateSize {
                conv: (mamba.kernel - 1) * mamba.channels(),
                recurrent: mamba.width() * mamba.state_size,
            }),
            Self::DeltaNet(net) => Some(StateSize {
                conv: (net.kernel - 1) * net.channels(),
                recurrent: net.value_heads * net.key_dim * net.value_dim,
            }),
        }
    }
}

impl Mamba2 {
    /// H·P.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Of the convolution: x, B and C.
    pub fn channels(&self) -> usize {
        self.width() + 2 * self.groups * self.state_size
    }
}

impl DeltaNet {
    /// Of all queries, and of all keys.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Of all values.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Of the convolution: queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}
