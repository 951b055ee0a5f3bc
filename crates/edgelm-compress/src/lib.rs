//! Making a model smaller: calibration statistics, quantization and pruning passes over one layer walk, and
//! recipes of passes.
//!
//! Separate because passes read checkpoints and write checkpoints and need neither a server nor a terminal. Memory is
//! bounded by the largest tensor's rows in work (and, with calibration, one layer and the calibration activations), never
//! by the model. Must not print.

mod activations;
pub mod calibration;
mod drift;
mod equalize;
mod export;
mod feedback;
mod fuse;
mod importance;
mod int_groups;
mod layer_pass;
mod logits;
mod lookup_groups;
mod matrix_format;
pub mod mixed;
mod moments;
mod output;
pub mod prune;
mod quantize;
#[cfg(test)]
mod random;
mod ranges;
pub mod recipe;
pub mod rotate;
mod scheme;
mod size;
mod store;
mod tensor_pass;
mod walk;

pub use calibration::{CalibrationOptions, CalibrationSet, CalibrationSource, HELD_OUT_WINDOWS, OnStep, Select};
pub use equalize::{ActivationRounding, Equalize};
pub use export::{ExportReport, export};
pub use feedback::{
    Fed, FeedbackOptions, quantize_ints_with_feedback, quantize_lookup_with_feedback, quantize_with_feedback,
};
pub use importance::{Importance, measure_importance};
pub use int_groups::{Activations, IntSettings, Strategy};
pub use layer_pass::Codes;
pub use lookup_groups::LookupSettings;
pub use matrix_format::MatrixFormat;
pub use moments::{Factor, Moments};
pub use quantize::{
    CalibratorName, FolderScheme, Formats, Inputs, IntOptions, IntScheme, Layerwise, Method, OnTensor, Per,
    QuantizeOptions, QuantizeReport, TensorReport, count_formats, is_gguf, largest_group, quantize,
};
pub use ranges::{Calibrator, Histogram};
pub use scheme::{Choice, Keep, Scheme};
pub use size::parse_size;
pub use store::LayerStore;
pub use walk::Walk;

use edgelm_model::ModelConfig;
use std::{ops::ControlFlow, path::PathBuf};

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
    /// Tensors that a file stores as one and that differ in format.
    #[error(
        "tensor `{name}` holds several matrices of the model, which must have one format without blocks across them"
    )]
    Fused {
        /// Stored name.
        name: String,
    },
    /// A pass that takes the layers of Llama for granted.
    #[error("{what} is not available for architecture `{architecture}`: its layers are built otherwise than Llama's")]
    Architecture {
        /// The pass.
        what: &'static str,
        /// Name of the family.
        architecture: &'static str,
    },
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
    /// Something in a tensor.
    #[error("tensor `{name}`")]
    InTensor {
        /// Stored name.
        name: String,
        /// What.
        #[source]
        source: Box<CompressError>,
    },
    /// The file that holds activations.
    #[error("the temporary file of activations failed")]
    Spill(#[source] std::io::Error),
    /// Arithmetic on a row.
    #[error(transparent)]
    Row(#[from] edgelm_tensor::TensorError),
    /// Infinities or NaN where numbers are needed.
    #[error("{what} is not finite")]
    NotFinite {
        /// What holds them.
        what: String,
    },
    /// Second moments that cannot be factored.
    #[error("the second moments of the calibration data are singular; more damping or more data is needed")]
    SingularHessian,
    /// A size that nothing fits into.
    #[error("the matrices cannot be smaller than {least} bytes with the formats at hand, and {budget} were asked for")]
    TargetTooSmall {
        /// Asked for.
        budget: u64,
        /// Possible.
        least: u64,
    },
    /// A quality that nothing reaches.
    #[error(
        "no mixture of the formats at hand stays within --max-kl {max_kl}: at {bits:.2} bits per weight, the most they can take, \
         {reached:.3e} was measured"
    )]
    KlTooSmall {
        /// Asked for.
        max_kl: f64,
        /// Of the largest mixture.
        bits: f64,
        /// Its divergence.
        reached: f64,
    },
    /// A matrix that none of the formats fits.
    #[error("tensor `{name}`: rows of {row_len} values are not whole blocks of any format at hand")]
    NoCandidate {
        /// Stored name.
        name: String,
        /// K.
        row_len: usize,
    },
    /// A format without codes.
    #[error("{dtype} has no codes to choose")]
    NoCodes {
        /// The format.
        dtype: edgelm_tensor::DType,
    },
    /// Integers in a GGUF file.
    #[error("GGUF has no {format}; the output must be a folder")]
    GgufFormat {
        /// The format.
        format: MatrixFormat,
    },
    /// A block format in a folder.
    #[error("{dtype} has no place in a safetensors folder; F32, F16 and BF16 have")]
    FolderFormat {
        /// The format.
        dtype: edgelm_tensor::DType,
    },
    /// A sparse format for weights that are not.
    #[error("`{name}`: more than two of four weights are not zero; `edgelm prune --pattern 2:4` changes that")]
    NotTwoOfFour {
        /// Tensor.
        name: String,
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
    /// Calibration text without data.
    #[error("the model cannot write its own calibration text: {0}")]
    OwnText(String),
    /// A setting without meaning.
    #[error("{what} is {value}: {problem}")]
    Setting {
        /// Its flag.
        what: &'static str,
        /// As given.
        value: String,
        /// What it should be.
        problem: String,
    },
    /// Something that only calibration data can answer.
    #[error("{what} needs calibration data")]
    NeedsCalibration {
        /// What was asked for.
        what: &'static str,
    },
    /// A sparsity pattern that does not exist.
    #[error("unknown pattern `{0}`; known: unstructured, N:M such as 2:4 and 4:8, block:RxC")]
    BadPattern(String),
    /// A matrix that is not whole groups of a sparsity pattern.
    #[error("{rows} rows of {columns} are not whole groups of pattern {pattern}")]
    PatternShape {
        /// The pattern.
        pattern: prune::Pattern,
        /// N.
        rows: usize,
        /// K.
        columns: usize,
    },
    /// A target that is no size.
    #[error("{0} bits per weight: must be more than 0")]
    BadTarget(f64),
    /// A recipe that cannot be followed.
    #[error("recipe `{recipe}`: {what}")]
    Recipe {
        /// File, or name of a ready one.
        recipe: String,
        /// Line, key and reason.
        what: String,
    },
    /// Data that a recipe needs and does not name.
    #[error("recipe `{recipe}`: {needs}; give {flag}, or `{key}` in the recipe")]
    RecipeNeeds {
        /// File, or name of a ready one.
        recipe: String,
        /// Who needs it.
        needs: String,
        /// Where the command line has it.
        flag: &'static str,
        /// Where the recipe has it.
        key: &'static str,
    },
    /// Measuring what gates are about.
    #[error("the gates of {after} cannot be measured")]
    Measure {
        /// Pass.
        after: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Left over from a run that did not finish.
    #[error("`{path}` is there: a run was interrupted, or its gates failed")]
    WorkExists {
        /// Work folder.
        path: PathBuf,
    },
    /// Nothing to go on with.
    #[error("there is no `{path}` to resume from")]
    NoWork {
        /// Work folder.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("`{path}` is in use by another process")]
    WorkInUse {
        /// Work folder.
        path: PathBuf,
    },
    /// Left over from a run of something else.
    #[error("`{path}` cannot be resumed: it was begun with another {what}")]
    WorkDiffers {
        /// Work folder.
        path: PathBuf,
        /// What is not the same.
        what: String,
    },
    /// What a work folder holds is not what was put there.
    #[error("`{path}` is damaged: {what}")]
    WorkDamaged {
        /// File.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// Ctrl-C in a recipe.
    #[error("interrupted; `{work}` holds what is done")]
    Interrupted {
        /// Work folder.
        work: PathBuf,
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

/// What a progress callback said, as a reason to end.
fn go_on(flow: ControlFlow<()>) -> Result<(), CompressError> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CompressError::Cancelled),
    }
}

/// Threads for the passes. The result of a pass does not depend on their number.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build()
}

/// For passes that go through the matrices of attention and of one feed-forward network, and would leave others as they are.
pub(crate) fn needs_known_matrices(config: &ModelConfig, what: &'static str) -> Result<(), CompressError> {
    match config.is_attention_and_mlp() {
        true => Ok(()),
        false => Err(CompressError::Architecture { what, architecture: config.arch.name }),
    }
}

/// For passes that fold factors into neighbours, or take channels out.
pub(crate) fn needs_plain_layers(config: &ModelConfig, what: &'static str) -> Result<(), CompressError> {
    match config.is_plain() {
        true => Ok(()),
        false => Err(CompressError::Architecture { what, architecture: config.arch.name }),
    }
}
