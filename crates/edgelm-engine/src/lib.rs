//! The engine: a checkpoint prepared for one machine. The only thing that generates.
//!
//! Separate because everything above (evaluation, calibration, serving) needs a model that runs and nothing below does.
//! Must not parse files of its own, print, or know about HTTP.

mod adapter;
mod batch;
mod beam;
mod block;
mod constraint;
mod decoding;
mod embed;
mod engine;
mod exact;
mod front;
mod generate;
mod head;
mod model;
mod picking;
mod prefix;
mod rope;
mod running;
mod sampling;
mod session;
mod speculation;
mod stop;

pub use adapter::LoadedAdapter;
pub use batch::{Batch, BatchOptions, KvMemory, LaneId, Progress};
pub use block::{Block, Observer};
pub use constraint::{Constraint, Grammar, Grammars, Guide, schema_with_options};
pub use decoding::{Decoding, sample};
pub use embed::{Pooling, unit_length};
pub use engine::{Engine, Sequence, Step, Want, Workspace, embed_window, kv_shapes, state_bytes};
pub use exact::Arithmetic;
pub use front::token_embeddings;
pub use generate::{FinishReason, GenerateOptions, Generation, Piece};
pub use head::Head;
pub use model::Model;
pub use prefix::{KvStore, Saving, StoreState};
pub use sampling::{Sampler, Sampling, argmax, log_sum_exp};
pub use session::SessionFault;
pub use speculation::{Guesses, Speculation};

/// Why something cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model.
    #[error(transparent)]
    Model(#[from] edgelm_model::ModelError),
    /// The machine.
    #[error(transparent)]
    Kernel(#[from] edgelm_kernels::KernelError),
    /// An adapter that cannot be used so.
    #[error("adapter: {0}")]
    Adapter(&'static str),
    /// Another engine than this crate's.
    #[error("the engine failed")]
    Runtime(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A matrix that is not among those that were packed.
    #[error("{id:?} was not packed")]
    NotPacked {
        /// Which.
        id: edgelm_model::TensorId,
    },
    /// Linear layers that share an input and want it rounded differently.
    #[error("layer {layer}: the scales of int8 inputs differ between linear layers that share one")]
    InputScales {
        /// Layer.
        layer: usize,
    },
    /// Prompt and requested tokens do not fit.
    #[error("the prompt has {prompt} tokens and {max_new} more were asked for, but the context holds {context}")]
    ContextLength {
        /// Prompt tokens.
        prompt: usize,
        /// Asked for.
        max_new: usize,
        /// Limit.
        context: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// V.
        vocab_size: usize,
    },
    /// More tokens than the memory for keys and values holds, even with nothing else in it.
    #[error("{tokens} tokens need more than the {budget_bytes} bytes of the KV budget, which hold {capacity} tokens")]
    KvBudget {
        /// Asked for, prompt included.
        tokens: usize,
        /// Limit in bytes.
        budget_bytes: usize,
        /// Limit in tokens.
        capacity: usize,
    },
    /// A file for kept beginnings that cannot be used.
    #[error("the KV store `{path}`")]
    KvStore {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Bytes that are no sequence of this model.
    #[error("the session: {0}")]
    Session(#[from] SessionFault),
    /// An empty prompt.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A sampling or generation option out of range.
    #[error("`{option}`: {what}")]
    Option {
        /// Field name.
        option: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A constraint on the output that cannot be enforced.
    #[error("the output cannot be constrained so: {0}")]
    Constraint(String),
    /// Messages were given to a model without a chat template.
    #[error("this model has no chat template")]
    NoChatTemplate,
}
