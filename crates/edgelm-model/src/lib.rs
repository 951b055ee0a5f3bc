//! What a model is: architecture descriptions, normalized config, checkpoint view, tokenizer, chat template.
//!
//! Separate because loading, inference, calibration, quantization and export all read the same description.
//! Must not compute anything: no kernels, no engine.

mod adapter;
pub mod arch;
pub mod chat_template;
mod checkpoint;
pub mod config;
pub mod tensors;
pub mod tokenizer;

pub use adapter::{Adapter, AdaptionPrompt, Lora};
pub use arch::Arch;
pub use chat_template::{ChatTemplate, Message};
pub use checkpoint::{Checkpoint, Edited, Embedded, HfFile, Replaced, StorageKind, Tensors, Texts};
pub use config::{
    Alibi, AttentionBias, Decay, DeltaNet, Experts, GatedNorm, GenerationConfig, LatentAttention, LayerConfig,
    LayerRope, Mamba2, Mixer, ModelConfig, Multipliers, NormKind, Norms, OutputGate, QkNorm, Residual, RopeConfig,
    RopePairs, RopeScaling, Routing, RoutingScore, ShortConv, StateSize, Style, ValueOrder,
};
pub use tensors::{ExpertTensor, LayerTensor, TensorId};
pub use tokenizer::{DecodeStream, TokenBytes, Tokenizer};

use std::path::PathBuf;

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file itself.
    #[error(transparent)]
    Format(#[from] edgelm_format::FormatError),
    /// Bytes that are not those of their format.
    #[error(transparent)]
    Tensor(#[from] edgelm_tensor::TensorError),
    /// A config file or key.
    #[error("`{path}`: {what}")]
    Config {
        /// File.
        path: PathBuf,
        /// Key, value, and what is wrong with it.
        what: String,
    },
    /// An architecture nobody described yet.
    #[error("`{path}`: architecture `{name}` is not supported; supported: {supported}")]
    UnknownArchitecture {
        /// File.
        path: PathBuf,
        /// Name as in the file.
        name: String,
        /// Comma-separated list.
        supported: String,
    },
    /// A tensor that must exist does not.
    #[error("`{path}`: tensor `{name}` is missing")]
    MissingTensor {
        /// File.
        path: PathBuf,
        /// Stored name expected.
        name: String,
    },
    /// A tensor that the architecture has no place for.
    #[error("`{path}`: unexpected tensor `{name}`")]
    UnexpectedTensor {
        /// File.
        path: PathBuf,
        /// Stored name.
        name: String,
    },
    /// A tensor of another shape than the config says.
    #[error("tensor `{name}` has shape {got:?}, expected {want:?}")]
    TensorShape {
        /// Stored name.
        name: String,
        /// As stored.
        got: Vec<usize>,
        /// From the config.
        want: Vec<usize>,
    },
    /// What the target format has no words for.
    #[error("cannot be written as GGUF: {0}")]
    Export(String),
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template, or what the template itself refused (`raise_exception`).
    #[error("chat template: {0}")]
    Template(String),
}
