//! How a whole model is stored in a Hugging Face folder.

use crate::{CompressError, IntSettings, LookupSettings, MatrixFormat};
use edgelm_format::{
    bitsandbytes::{FourBitConfig, LookupMatrix, declare_lookup, pack_lookup},
    compressed_tensors::{
        Activations, Group, IntQuantization, Packing, declare_matrix, declare_sparse, pack_matrix, pack_sparse,
    },
    safetensors::Element,
};
use edgelm_model::{LayerTensor, TensorId};
use edgelm_tensor::DType;
use serde_json::Value;

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

/// Name, type and shape of a stored tensor.
pub(super) type Declared = (String, Element, Vec<usize>);

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
        let float = MatrixFormat::Block(if dtype.is_quantized() { DType::F16 } else { dtype });
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

    /// True if two of every four weights of a matrix are stored, so that the others must be zero.
    pub(super) fn is_sparse(&self, id: TensorId, format: MatrixFormat, row_len: usize) -> bool {
        match format {
            MatrixFormat::Int(settings) => settings.format.is_sparse(),
            MatrixFormat::Block(dtype) => {
                *self == Self::TwoOfFour(dtype) && is_linear(id) && id.is_matrix() && row_len.is_multiple_of(8)
            }
            MatrixFormat::Lookup(_) => false,
        }
    }

    /// What the user should know of quantized tables.
    pub(super) fn table_note(&self) -> Option<String> {
        let Self::Ints(scheme) = self else { return None };
        let keep = "`--keep token_embd.weight=F16 --keep output.weight=F16` leaves them floats";
        let table = scheme.table;
        Some(format!("embedding and output head are {table}; not all programs read that: {keep}"))
    }

    /// The tensors that stand for `{module}.weight` `[N, K]`.
    pub(super) fn declare(&self, id: TensorId, module: &str, shape: [usize; 2]) -> Vec<Declared> {
        match self {
            Self::TwoOfFour(dtype) => {
                let element = Element::of(*dtype).unwrap_or(Element::F16);
                declare_sparse(module, element, shape).into()
            }
            Self::Ints(scheme) => declare_matrix(module, &scheme.group(id, Vec::new()), shape),
            Self::Lookup(settings) => declare_lookup(&format!("{module}.weight"), &lookup_matrix(settings, shape)),
        }
    }

    /// The bytes of those tensors, from its rows. `input_scale` is for those that have one.
    pub(super) fn pack(&self, id: TensorId, shape: [usize; 2], blocks: &[u8], input_scale: f32) -> Vec<Vec<u8>> {
        match self {
            Self::TwoOfFour(dtype) => pack_sparse(dtype.block_bytes(), shape, blocks).into(),
            Self::Ints(scheme) => pack_matrix(&scheme.group(id, Vec::new()), shape, blocks, input_scale).parts,
            Self::Lookup(settings) => pack_lookup(&lookup_matrix(settings, shape), blocks),
        }
    }

    /// `quantization_config`. `tables`: modules of quantized matrices outside of layers, and the tensor of one; `ignore`: modules
    /// that are not quantized.
    pub(super) fn config(&self, tables: Option<(TensorId, Vec<String>)>, ignore: Vec<String>) -> Value {
        match self {
            Self::Ints(scheme) => {
                let linear = TensorId::Layer(0, LayerTensor::Q);
                let mut groups = vec![scheme.group(linear, vec!["Linear".to_owned()])];
                // By name: the head is a `Linear` too.
                groups.extend(tables.map(|(id, modules)| scheme.group(id, modules)));
                // Our own packing says so itself.
                let is_bitmask = groups[0].format.is_sparse() && groups[0].packing == Packing::Bytes;
                let sparse = if is_bitmask { groups[0].targets.clone() } else { Vec::new() };
                IntQuantization { groups, ignore, sparse }.to_json()
            }
            Self::Lookup(settings) => FourBitConfig { format: settings.format, skipped: ignore }.to_json(),
            Self::TwoOfFour(_) => {
                let sparse = vec!["Linear".to_owned()];
                IntQuantization { groups: Vec::new(), ignore, sparse }.to_json()
            }
        }
    }
}

fn is_linear(id: TensorId) -> bool {
    matches!(id, TensorId::Layer(..))
}

fn lookup_matrix(settings: &LookupSettings, shape: [usize; 2]) -> LookupMatrix {
    LookupMatrix { format: settings.format, run: settings.group_size, shape }
}

impl IntScheme {
    fn of(&self, id: TensorId) -> IntSettings {
        if is_linear(id) { self.linear } else { self.table }
    }

    fn group(&self, id: TensorId, targets: Vec<String>) -> Group {
        let settings = self.of(id);
        let activations = if is_linear(id) { self.activations } else { Activations::Any };
        // Of sparse int8 the library has bytes alone.
        let is_sparse_bytes = settings.format.is_sparse() && settings.format.bits() == 8;
        let packing = if activations == Activations::Any && !is_sparse_bytes { Packing::Words } else { Packing::Bytes };
        Group { targets, format: settings.format, strategy: settings.strategy, activations, packing }
    }
}
