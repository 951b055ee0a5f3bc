//! ONNX Runtime as a second engine: folders that `export --format onnx` wrote, or others with the same inputs and outputs.
//!
//! Separate because the library is loaded when it is asked for, and nothing else may need it. Must not know how models are stored
//! otherwise, nor print.
//!
//! The one thing a reader would get wrong: a sequence's cache is what the graph returned, tensors of the runtime, and goes back into
//! it as it is; only forgetting positions copies it.

mod decoding;
mod library;
mod model;
mod provider;

pub use decoding::OrtSequence;
pub use model::{OrtModel, OrtOptions};
pub use provider::Provider;

use std::path::PathBuf;

/// Why ONNX Runtime does not run something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrtError {
    /// The library.
    #[error("ONNX Runtime cannot be loaded from `{path}`: {reason}")]
    Library {
        /// File, or the name that the system looks for.
        path: String,
        /// What the loader said.
        reason: String,
    },
    /// What the library said.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// A provider that the library was built without.
    #[error("this ONNX Runtime has no execution provider `{wanted}`; it has: {offered}")]
    Provider {
        /// As asked for.
        wanted: Provider,
        /// Comma-separated list.
        offered: String,
    },
    /// A folder without a graph.
    #[error("`{path}`: no `model.onnx` here")]
    NoGraph {
        /// Folder.
        path: PathBuf,
    },
    /// A graph with other inputs or outputs.
    #[error("`{path}`: {what}")]
    Graph {
        /// Folder.
        path: PathBuf,
        /// Which.
        what: String,
    },
    /// The texts beside it.
    #[error(transparent)]
    Model(#[from] edgelm_model::ModelError),
}

impl From<ort::Error> for OrtError {
    fn from(error: ort::Error) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<OrtError> for edgelm_engine::EngineError {
    fn from(error: OrtError) -> Self {
        Self::Runtime(Box::new(error))
    }
}
