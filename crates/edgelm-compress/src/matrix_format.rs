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
use edgelm_format::{
    bitsandbytes::{declare_lookup, pack_lookup},
    compressed_tensors::{Activations, Strategy, declare_matrix, pack_matrix},
    safetensors::Element,
};
use edgelm_tensor::{DType, IntFormat, LookupFormat, TensorError, block::encode_row};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Name, type and shape of a stored tensor.
pub(crate) type Declared = (String, Element, Vec<usize>);

/// A format of GGUF, or one that safetensors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl From<MatrixFormat> for String {
    fn from(format: MatrixFormat) -> Self {
        format.to_string()
    }
}

impl TryFrom<String> for MatrixFormat {
    type Error = TensorError;

    /// What `Display` writes.
    fn try_from(text: String) -> Result<Self, TensorError> {
        let unknown = || TensorError::UnknownName(text.clone());
        let size = |shared: &str| shared.strip_prefix('g').and_then(|size| size.parse::<usize>().ok());
        let Some(rest) = text.strip_prefix("int") else {
            let lookup = text.split_once(' ').and_then(|(name, shared)| {
                Some(LookupSettings { format: LookupFormat::from_name(name)?, group_size: size(shared)? })
            });
            return lookup.map_or_else(|| DType::from_name(&text).map(Self::Block), |found| Ok(Self::Lookup(found)));
        };
        let words: Vec<&str> = rest.split(' ').collect();
        let (bits, symmetric, is_sparse, shared) = match words[..] {
            [bits, shared] => (bits, true, false, shared),
            [bits, "asym", shared] => (bits, false, false, shared),
            [bits, "2:4", shared] => (bits, true, true, shared),
            _ => return Err(unknown()),
        };
        let strategy = match (shared, size(shared)) {
            ("tensor", _) => Strategy::Tensor,
            ("row", _) => Strategy::Channel,
            (_, Some(size)) => Strategy::Group(size),
            _ => return Err(unknown()),
        };
        let dense = bits.parse().ok().and_then(|bits| IntFormat::new(bits, symmetric)).ok_or_else(unknown)?;
        let format = if is_sparse { dense.sparse().ok_or_else(unknown)? } else { dense };
        Ok(Self::Int(IntSettings { format, strategy }))
    }
}

impl MatrixFormat {
    /// Bytes of a matrix `[N, K]` with its scales; `None` where its rows are not whole blocks or groups.
    pub fn bytes(self, rows: usize, columns: usize) -> Option<u64> {
        match self {
            Self::Block(dtype) => dtype.row_bytes(columns).ok().map(|bytes| (bytes * rows) as u64),
            Self::Int(settings) if !settings.fits(columns) => None,
            Self::Lookup(settings) if !settings.fits(columns) => None,
            Self::Int(_) | Self::Lookup(_) => {
                let bytes = |(_, element, shape): (_, Element, Vec<usize>)| -> u64 {
                    (element.bytes() * shape.iter().product::<usize>()) as u64
                };
                Some(self.declare("", Activations::Any, [rows, columns]).into_iter().map(bytes).sum())
            }
        }
    }

    /// The tensors that stand for `{module}.weight` `[N, K]` in a folder; none for blocks. `activations`: what happens to its
    /// inputs.
    pub(crate) fn declare(self, module: &str, activations: Activations, shape: [usize; 2]) -> Vec<Declared> {
        match self {
            Self::Block(_) => Vec::new(),
            Self::Int(settings) => declare_matrix(module, &settings.group(activations), shape),
            Self::Lookup(settings) => declare_lookup(&format!("{module}.weight"), &settings.matrix(shape)),
        }
    }

    /// The bytes of those tensors, from its rows of blocks. `input_scale` is for those that have one.
    pub(crate) fn pack(
        self,
        activations: Activations,
        shape: [usize; 2],
        blocks: &[u8],
        input_scale: f32,
    ) -> Vec<Vec<u8>> {
        match self {
            Self::Block(_) => Vec::new(),
            Self::Int(settings) => pack_matrix(&settings.group(activations), shape, blocks, input_scale).parts,
            Self::Lookup(settings) => pack_lookup(&settings.matrix(shape), blocks),
        }
    }

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
