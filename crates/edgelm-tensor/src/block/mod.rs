//! Encoding and decoding of rows: the contract. One file per format beside this one.

use crate::{DType, TensorError};

/// Decodes one row (any whole number of blocks) into `out`.
///
/// Errors if `bytes` is not exactly the `row_bytes` of `out.len()` values.
pub fn decode_row(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), TensorError> {
    let _ = (dtype, bytes, out);
    todo!()
}

/// Encodes one row, choosing scales that minimize Σ importance[i] · (row[i] − decoded[i])².
///
/// `importance` (same length as `row`, non-negative; `None` = the format's default weighting) is usually the mean
/// square of the activations that meet each column. Errors on lengths, and on values that are not finite.
pub fn encode_row(dtype: DType, row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), TensorError> {
    let _ = (dtype, row, importance, out);
    todo!()
}
