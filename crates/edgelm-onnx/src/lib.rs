//! Models as ONNX graphs, in two styles: for `onnxruntime-genai`, with the fused operators that ONNX Runtime has for decoders, and
//! in standard operators alone, for other tool chains (TensorRT, OpenVINO, QNN).
//!
//! Separate because only this knows what a graph is; the model is the description that everything else reads too. Must not run
//! anything: what a graph computes is what `edgelm-engine` computes, said in operators.
//!
//! The one thing a reader would get wrong: nothing is quantized here. Codes that the checkpoint stores are kept where an operator
//! has them, and what is not stored as such is written as floats; the report says which.

mod attention;
mod experts;
mod export;
mod feed_forward;
mod folder;
mod form;
mod front;
mod genai_config;
mod graph;
mod layer;
mod linear;
mod mask;
mod network;
mod norm;
mod parameters;
mod rotary;
mod support;
mod tokenizer;

pub use export::{OnStep, OnnxOptions, export};
pub use form::Floats;
pub use support::{OnnxStyle, unsupported};

use edgelm_model::ModelError;
use std::path::PathBuf;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxReport {
    /// Files of the folder.
    pub files: Vec<PathBuf>,
    /// How matrices are stored.
    pub kinds: Vec<Kind>,
    /// What a user should know: texts that are not there, and why.
    pub notes: Vec<String>,
    /// Weight files before.
    pub input_bytes: u64,
    /// All files now.
    pub output_bytes: u64,
}

/// Matrices of one role and one form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// What they do, e.g. `Q`.
    pub role: String,
    /// Format in the checkpoint.
    pub from: String,
    /// Format in the graph.
    pub to: String,
    /// Why codes were not kept, where there were any.
    pub reason: Option<String>,
    /// How many.
    pub count: usize,
}

/// Why a model is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Reading it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Writing it.
    #[error(transparent)]
    Format(#[from] edgelm_format::FormatError),
    /// Values of a tensor.
    #[error(transparent)]
    Tensor(#[from] edgelm_tensor::TensorError),
    /// What no operator of the style computes.
    #[error("architecture `{architecture}` cannot be written as ONNX in style `{style}`: {what}")]
    Unsupported {
        /// Name of the family.
        architecture: &'static str,
        /// `genai` or `qdq`.
        style: OnnxStyle,
        /// What is in the way.
        what: String,
    },
    /// Linear layers of one input whose int8 inputs have different scales.
    #[error("layer {layer}: the linear layers of one input have different input scales")]
    InputScales {
        /// Which.
        layer: usize,
    },
    /// Positions that the graph cannot have.
    #[error("{context} positions: must be 1 to {most}")]
    Context {
        /// Asked for, or the model's own.
        context: usize,
        /// What can be had.
        most: usize,
    },
    /// The progress callback said so.
    #[error("interrupted; nothing was written")]
    Cancelled,
    /// The output would overwrite the input.
    #[error("`{path}` is the model being read")]
    OutputIsInput {
        /// Folder.
        path: PathBuf,
    },
}
