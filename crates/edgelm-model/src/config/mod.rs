//! The normalized configuration: the same whatever file it came from. Field names as in `config.json`.

mod experts;
mod generation;
mod gguf_check;
mod gguf_experts;
mod gguf_form;
mod gguf_keys;
mod gguf_mixers;
mod gguf_notes;
mod gguf_read;
mod gguf_style;
mod gguf_write;
mod hf;
mod hf_rope;
mod json;
mod limits;
mod mixer;
mod pairs;
mod rope;
mod shapes;
mod style;

pub use edgelm_tensor::RopePairs;
pub use experts::{Experts, Routing, RoutingScore};
pub use generation::GenerationConfig;
pub use gguf_experts::{GgufExperts, RoutingKey, SharedExpert};
pub(crate) use gguf_keys::GgufKeys;
pub use gguf_mixers::GgufMixer;
pub(crate) use gguf_read::GgufTensors;
pub use gguf_style::StyleKey;
pub(crate) use hf::BESIDE_TEXT;
pub(crate) use json::{Keys, parse_object};
pub(crate) use limits::{MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_KERNEL};
pub use mixer::{Decay, DeltaNet, GatedNorm, LatentAttention, Mamba2, Mixer, ShortConv, StateSize, ValueOrder};
pub use rope::{QueryGrowth, RopeConfig, RopeScaling};
pub use style::{Alibi, Multipliers, NormKind, Norms, OutputGate, QkNorm, Residual, Style};

use crate::{Arch, TensorId};

/// Everything the engine, the passes and the exporters need to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The description this model is an instance of.
    pub arch: &'static Arch,
    /// D.
    pub hidden_size: usize,
    /// W, the width of embeddings: D, or less where a matrix stands between them and the first layer.
    pub embedding_size: usize,
    /// V.
    pub vocab_size: usize,
    /// Trained context length.
    pub max_position_embeddings: usize,
    /// ε of every norm.
    pub norm_eps: f32,
    /// Output head = token embedding.
    pub tie_word_embeddings: bool,
    /// What every layer computes.
    pub style: Style,
    /// Rotary embedding, of layers that say [`LayerRope::Global`].
    pub rope: RopeConfig,
    /// The one of layers that say [`LayerRope::Local`].
    pub local_rope: Option<RopeConfig>,
    /// One entry per decoder layer; widths may differ.
    pub layers: Vec<LayerConfig>,
    /// From config.json or GGUF.
    pub bos_token_id: Option<u32>,
    /// Union over config.json, generation_config.json, tokenizer_config.json and GGUF (eos, eot, eom …), sorted.
    pub eos_token_ids: Vec<u32>,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// What its positions see each other by. Heads, window and rotary embedding are those of attention.
    pub mixer: Mixer,
    /// H.
    pub num_attention_heads: usize,
    /// G.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
    /// F; of an expert where there are several; 0 where there is no feed-forward half.
    pub intermediate_size: usize,
    /// The feed-forward network is one of these.
    pub experts: Option<Experts>,
    /// Positions seen, itself included; `None` = all.
    pub sliding_window: Option<usize>,
    /// Which rotary embedding.
    pub rope: LayerRope,
    /// Which projections have a bias.
    pub attention_bias: AttentionBias,
    /// gate/up/down have biases.
    pub mlp_bias: bool,
}

/// The rotary embedding of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LayerRope {
    None,
    Global,
    Local,
}

/// Which attention projections carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AttentionBias {
    None,
    Qkv,
    O,
    Qkvo,
}

impl AttentionBias {
    /// Q, K and V have one.
    pub fn on_inputs(self) -> bool {
        matches!(self, Self::Qkv | Self::Qkvo)
    }

    /// O has one.
    pub fn on_output(self) -> bool {
        matches!(self, Self::O | Self::Qkvo)
    }
}

impl ModelConfig {
    /// Every layer has attention, and one feed-forward network: no other mixers, no experts.
    pub fn is_attention_and_mlp(&self) -> bool {
        let is_one = |layer: &LayerConfig| layer.mixer == Mixer::Attention && layer.experts.is_none();
        self.layers.iter().all(is_one) && self.style.output_gate.is_none()
    }

    /// Some layer has [`Mixer::LatentAttention`].
    pub fn has_latent_attention(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.mixer, Mixer::LatentAttention(_)))
    }

    /// The same as [`Self::is_attention_and_mlp`], with layers as [`Style::is_plain`] has them, and embeddings as wide as these.
    pub fn is_plain(&self) -> bool {
        self.style.is_plain() && self.is_attention_and_mlp() && self.embedding_size == self.hidden_size
    }

    /// The tensor that makes the logits: the embedding where tied.
    pub fn head(&self) -> TensorId {
        if self.tie_word_embeddings { TensorId::TokenEmbedding } else { TensorId::Output }
    }

    /// Positions the model can be run at: the trained length, stretched where the rotary scaling says so (`Dynamic`:
    /// times its factor; YaRN: the original length times its factor, if that is more).
    pub fn context_length(&self) -> usize {
        let stretched = match self.rope.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings }
            | RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                (original_max_position_embeddings as f64 * factor) as usize
            }
            _ => 0,
        };
        stretched.min(limits::MAX_CONTEXT).max(self.max_position_embeddings)
    }
}
