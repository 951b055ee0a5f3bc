//! Element types and quantized block formats, defined by scalar code.
//!
//! Separate because every other crate needs the formats and none of what the others need: no SIMD, no files,
//! no threads. Must not depend on any other crate of the workspace.
//!
//! The one thing a reader would get wrong: formats are *byte-compatible with GGUF*, so a block's field order and
//! nibble order are those of the GGUF files in the wild, not the most convenient ones.

mod activation;
pub mod block;
mod dtype;
mod int_format;
mod lookup_format;
mod rope_pairs;

pub use activation::Activation;
pub use dtype::DType;
pub use int_format::{IntBlock, IntFormat, write_ints};
pub use lookup_format::LookupFormat;
pub use rope_pairs::RopePairs;

/// What can go wrong when bytes are read as a format or values are written in one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A row cannot be cut into whole blocks.
    #[error("a row of {len} values is not a multiple of the {block_len} values of a {dtype} block")]
    RowLength {
        /// Format.
        dtype: DType,
        /// Values in the row.
        len: usize,
        /// Values in a block.
        block_len: usize,
    },
    /// The byte count does not belong to the value count.
    #[error("{dtype} row of {len} values needs {want} bytes, got {got}")]
    ByteLength {
        /// Format.
        dtype: DType,
        /// Values in the row.
        len: usize,
        /// Bytes needed.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// The importance is not that of the row.
    #[error("importance has {got} values, its row {want}")]
    ImportanceLength {
        /// Values in the row.
        want: usize,
        /// Weights given.
        got: usize,
    },
    /// A name that is no format.
    #[error("unknown format `{0}`")]
    UnknownName(String),
    /// Values that no format can hold.
    #[error("value {index} is not finite")]
    NotFinite {
        /// Where in the row.
        index: usize,
    },
}
