//! How a whole model is stored in a Hugging Face folder.

use crate::{CompressError, IntSettings, LookupSettings, MatrixFormat};
use edgelm_format::compressed_tensors::Activations;
use edgelm_model::TensorId;
use edgelm_tensor::DType;

/// What matrices become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderScheme {
    /// Integers, as the compressed-tensors library stores them.
    Ints(IntScheme),
    /// Codes of a table, as bitsandbytes stores them. Token embedding and output head stay floats: it knows linear layers only,
    /// and leaves the last one as it is.
    Lookup(LookupSettings),
    /// Floats, of which two of every four are stored in linear layers whose rows are whole eights.
    TwoOfFour(DType),
}

/// Integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntScheme {
    /// Linear layers.
    pub linear: IntSettings,
    /// Token embedding and output head.
    pub table: IntSettings,
    /// Inputs of the linear layers.
    pub activations: Activations,
}

/// A format, and the one that was wanted where it does not fit.
type Chosen = (MatrixFormat, Option<String>);

impl FolderScheme {
    /// The format of a tensor with rows of `row_len`, stored as `dtype`. `keep`: what the user wants instead, which can only
    /// be a format that is not quantized.
    pub(super) fn choose(
        &self,
        id: TensorId,
        row_len: usize,
        dtype: DType,
        keep: Option<DType>,
    ) -> Result<Chosen, CompressError> {
        let float = float(dtype);
        if !id.is_matrix() {
            return Ok((float, None));
        }
        match keep {
            Some(dtype) if dtype.is_quantized() => return Err(CompressError::FolderFormat { dtype }),
            Some(dtype) => return Ok((MatrixFormat::Block(dtype), None)),
            None => {}
        }
        let (format, fits) = match self {
            Self::Ints(scheme) => (MatrixFormat::Int(scheme.of(id)), scheme.of(id).fits(row_len)),
            Self::Lookup(settings) if is_linear(id) => (MatrixFormat::Lookup(*settings), settings.fits(row_len)),
            Self::Lookup(_) => return Ok((float, None)),
            Self::TwoOfFour(dtype) => return Ok((MatrixFormat::Block(*dtype), None)),
        };
        Ok(if fits { (format, None) } else { (float, Some(format.to_string())) })
    }

    /// How the tensors are put into files.
    pub(super) fn storage(&self) -> Storage {
        match self {
            Self::Ints(scheme) => Storage { activations: scheme.activations, ..Storage::default() },
            Self::Lookup(_) => Storage::default(),
            Self::TwoOfFour(dtype) => Storage { sparse_floats: Some(*dtype), ..Storage::default() },
        }
    }
}

/// What formats of matrices do not say about how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage {
    /// Inputs of linear layers.
    pub activations: Activations,
    /// The type of floats of which two of every four are stored in linear layers whose rows are whole eights.
    pub sparse_floats: Option<DType>,
}

impl Default for Storage {
    fn default() -> Self {
        Self { activations: Activations::Any, sparse_floats: None }
    }
}

impl Storage {
    /// True if two of every four weights of a matrix are stored, so that the others must be zero.
    pub(super) fn is_sparse(&self, id: TensorId, format: MatrixFormat, row_len: usize) -> bool {
        match format {
            MatrixFormat::Int(settings) => settings.format.is_sparse(),
            MatrixFormat::Block(dtype) => {
                self.sparse_floats == Some(dtype) && is_linear(id) && id.is_matrix() && row_len.is_multiple_of(8)
            }
            MatrixFormat::Lookup(_) => false,
        }
    }

    /// What happens to the inputs of a matrix.
    pub(super) fn activations(&self, id: TensorId) -> Activations {
        if is_linear(id) { self.activations } else { Activations::Any }
    }
}

/// What is stored unquantized, of what was `dtype`.
pub(super) fn float(dtype: DType) -> MatrixFormat {
    MatrixFormat::Block(if dtype.is_quantized() { DType::F16 } else { dtype })
}

/// True for what stands in a layer.
pub(super) fn is_linear(id: TensorId) -> bool {
    matches!(id, TensorId::Layer(..))
}

impl IntScheme {
    fn of(&self, id: TensorId) -> IntSettings {
        if is_linear(id) { self.linear } else { self.table }
    }
}
