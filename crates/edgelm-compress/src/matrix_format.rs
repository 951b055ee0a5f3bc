//! What a matrix is quantized to.

use crate::{
    CompressError,
    feedback::{
        Fed, FeedbackOptions, quantize_ints_with_feedback, quantize_lookup_with_feedback, quantize_with_feedback,
    },
    int_groups::{self, IntSettings},
    layer_pass::decode_blocks,
    lookup_groups::{self, LookupSettings},
    moments::Moments,
};
use edgelm_tensor::{DType, TensorError, block::encode_row};
use rayon::prelude::*;

/// A format of GGUF, or one that safetensors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixFormat {
    /// Also F32, F16 and BF16: not quantized.
    Block(DType),
    /// Stored as quants and scales, run as blocks.
    Int(IntSettings),
    /// The same with codes of a table in place of integers.
    Lookup(LookupSettings),
}

impl std::fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(dtype) => dtype.fmt(f),
            Self::Int(settings) => settings.fmt(f),
            Self::Lookup(settings) => settings.fmt(f),
        }
    }
}

impl MatrixFormat {
    /// The type of the blocks that are run.
    pub fn dtype(self) -> DType {
        match self {
            Self::Block(dtype) => dtype,
            Self::Int(settings) => settings.format.block_dtype(),
            Self::Lookup(settings) => settings.format.block_dtype(),
        }
    }

    /// True for everything but floats.
    pub fn is_quantized(self) -> bool {
        self.dtype().is_quantized()
    }

    /// True if a matrix stored as `dtype` is in this format already.
    pub(crate) fn is_that_of(self, dtype: DType) -> bool {
        self == Self::Block(dtype)
    }

    /// The blocks of `values` `[N, K]`, each code the nearest, scales of least error weighted by `importance` `[K]`.
    pub(crate) fn encode(
        self,
        values: &[f32],
        columns: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, TensorError> {
        let refuse_what_is_not_finite = || match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(TensorError::NotFinite { index: index % columns.max(1) }),
            None => Ok(()),
        };
        let dtype = match self {
            Self::Block(dtype) => dtype,
            Self::Int(settings) => {
                refuse_what_is_not_finite()?;
                return Ok(int_groups::round_to_nearest(&settings, values, columns, importance));
            }
            Self::Lookup(settings) => {
                refuse_what_is_not_finite()?;
                return Ok(lookup_groups::round_to_nearest(&settings, values, columns, importance));
            }
        };
        let row_bytes = dtype.row_bytes(columns)?;
        let mut bytes = vec![0; values.len() / columns.max(1) * row_bytes];
        let rows = bytes.par_chunks_mut(row_bytes.max(1)).zip(values.par_chunks(columns.max(1)));
        rows.try_for_each(|(bytes, row)| encode_row(dtype, row, importance, bytes))?;
        Ok(bytes)
    }

    /// `values` `[N, K]` encoded and decoded again.
    pub(crate) fn rounded(
        self,
        values: &[f32],
        columns: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<f32>, TensorError> {
        let bytes = self.encode(values, columns, importance)?;
        decode_blocks(self.dtype(), &bytes, columns, values.len())
    }

    /// The blocks of `weights` `[N, K]` with error feedback.
    pub(crate) fn feed_back(
        self,
        weights: &[f32],
        moments: &Moments,
        options: &FeedbackOptions,
    ) -> Result<Fed, CompressError> {
        match self {
            Self::Block(dtype) => quantize_with_feedback(dtype, weights, moments, options),
            Self::Int(settings) => quantize_ints_with_feedback(&settings, weights, moments, options),
            Self::Lookup(settings) => quantize_lookup_with_feedback(&settings, weights, moments, options),
        }
    }
}
