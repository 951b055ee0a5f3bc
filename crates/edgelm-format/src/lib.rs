//! Model file formats: bytes in, checked values out.
//!
//! Separate because bytes are hostile here and trusted above: every length, offset, type and shape is checked before
//! anything is allocated by it. Must not know what a model is (no config, no architecture, no tokenizer).

pub mod auto_round;
pub mod awq;
pub mod bitnet;
mod bits;
pub mod bitsandbytes;
mod coded;
pub mod column_ints;
pub mod compressed_tensors;
mod fault;
pub mod fp8;
pub mod gguf;
pub mod gptq;
mod ints;
pub mod mxfp4;
pub mod onnx;
mod output;
mod payload;
mod quantizer_keys;
pub mod safetensors;
mod shape;
mod source;
mod staged;

pub use coded::{CodedMatrix, Reordered};
pub use ints::{IntLayout, Ints};
pub use output::{create_sibling, rename_synced, write_file};
pub use source::Source;
pub use staged::{StagedFolder, refuse_replacing, replace};

use edgelm_tensor::DType;
use std::{borrow::Cow, path::PathBuf};

/// A checked view of one stored tensor. `shape` is row-major, outermost first (as in PyTorch): a linear
/// layer's weight is `[out_features, in_features]` whatever the file format's own order is.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Element format.
    pub dtype: DType,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// Exactly the bytes of that shape in that format, little-endian. They start wherever the file put them: no
    /// alignment may be assumed. Owned where the file holds the tensor in a form that is rewritten as blocks when it is
    /// asked for.
    pub bytes: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    /// Length of the innermost dimension (1 for a scalar).
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a file says of one stored tensor, also where [`DType`] lacks its type.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// The file's name of the type (`BF16`, `I64`, `IQ1_S`; `type 99` for a GGUF id that has none here).
    pub type_name: &'a str,
    /// The type, if a view can be had.
    pub dtype: Option<DType>,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// The stored bytes; `None` where the size of the type is not known.
    pub bytes: Option<&'a [u8]>,
}

/// What is wrong with a file. Every variant names the file; most name the tensor or key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file could not be opened, read or written.
    #[error("`{path}`: {action} failed")]
    Io {
        /// File.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bytes break the format's rules.
    #[error("`{path}`: {what}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// Which rule, where.
        what: String,
    },
    /// A folder that would have to be emptied first.
    #[error("`{path}` exists and is not an empty folder")]
    OutputExists {
        /// Folder.
        path: PathBuf,
    },
    /// Well-formed, but this program cannot read it.
    #[error("`{path}`: {what}")]
    Unsupported {
        /// File.
        path: PathBuf,
        /// What is not supported, and its name in the file.
        what: String,
    },
}
