//! Making a model smaller: calibration statistics and quantization passes over one layer walk.
//!
//! Separate because passes read checkpoints and write checkpoints and need neither a server nor a terminal. Memory is
//! bounded by the largest tensor's rows in work (and, with calibration, one layer and the calibration activations), never
//! by the model. Must not print.

pub mod calibration;
mod gguf_out;
mod importance;
mod scheme;
mod tensor_pass;

pub use calibration::{CalibrationOptions, calibration_windows};
pub use gguf_out::{OnTensor, QuantizeOptions, QuantizeReport, TensorReport, quantize_to_gguf};
pub use importance::{Importance, measure_importance};
pub use scheme::{Choice, Keep, Scheme};

use std::path::PathBuf;

/// Why a pass cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// Reading the model.
    #[error(transparent)]
    Model(#[from] edgelm_model::ModelError),
    /// Running the model for calibration.
    #[error(transparent)]
    Engine(#[from] edgelm_engine::EngineError),
    /// Writing the output.
    #[error(transparent)]
    Format(#[from] edgelm_format::FormatError),
    /// A tensor's values.
    #[error("tensor `{name}`")]
    Tensor {
        /// Stored name.
        name: String,
        /// What is wrong with them.
        #[source]
        source: edgelm_tensor::TensorError,
    },
    /// A format or preset that does not exist.
    #[error("unknown format `{name}`; known: {known}")]
    UnknownScheme {
        /// As given.
        name: String,
        /// Comma-separated list.
        known: String,
    },
    /// A `PATTERN=FORMAT` that cannot be read.
    #[error("`{0}` is not PATTERN=FORMAT")]
    BadKeep(String),
    /// A kept pattern that names no tensor.
    #[error("pattern `{0}` matches no tensor")]
    UnusedKeep(String),
    /// The calibration file.
    #[error("`{path}`: {what}")]
    Calibration {
        /// File.
        path: PathBuf,
        /// Line and reason.
        what: String,
    },
    /// The progress callback said so.
    #[error("interrupted; nothing was written")]
    Cancelled,
    /// The output would overwrite the input.
    #[error("`{path}` is the model being read")]
    OutputIsInput {
        /// File.
        path: PathBuf,
    },
}

/// Threads for the passes. The result of a pass does not depend on their number.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build()
}
