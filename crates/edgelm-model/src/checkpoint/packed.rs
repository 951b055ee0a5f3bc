//! A folder whose matrices are stored as codes with scales: seen as one of block formats.
//!
//! Nothing is converted before it is asked for, and nothing that was converted is kept.

use crate::ModelError;
use edgelm_format::{
    FormatError, Source, TensorView, bitsandbytes,
    bitsandbytes::{FourBitConfig, LookupTensor},
    compressed_tensors,
    compressed_tensors::{Group, IntQuantization, IntTensor, SparseTensor},
    safetensors::SafeTensors,
};
use edgelm_tensor::DType;
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::Path};

/// `quantization_config`.
pub(super) enum Quantization {
    Ints(IntQuantization),
    FourBit,
}

impl Quantization {
    /// Errors name the key; `path` is that of config.json.
    pub(super) fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        match FourBitConfig::is_meant_by(value) {
            true => FourBitConfig::from_json(value, path).map(|_| Self::FourBit),
            false => IntQuantization::from_json(value, path).map(Self::Ints),
        }
    }
}

/// The weight files and what their parts make.
pub(super) struct PackedFolder {
    file: SafeTensors,
    /// By the name that the weight would have.
    matrices: BTreeMap<String, Packed>,
}

struct Packed {
    stored: Stored,
    shape: [usize; 2],
    dtype: DType,
    input_scale: Option<f32>,
}

/// How to open it again.
enum Stored {
    Ints { module: String, group: Group },
    FourBit { weight: String },
    Sparse { module: String },
}

/// A matrix whose parts were checked.
enum Opened<'a> {
    Ints(IntTensor<'a>),
    FourBit(LookupTensor<'a>),
    Sparse(SparseTensor<'a>),
}

impl Stored {
    fn open<'a>(&'a self, file: &'a SafeTensors) -> Result<Option<Opened<'a>>, FormatError> {
        Ok(match self {
            Self::Ints { module, group } => IntTensor::open(file, module, group)?.map(Opened::Ints),
            Self::FourBit { weight } => LookupTensor::open(file, weight)?.map(Opened::FourBit),
            Self::Sparse { module } => SparseTensor::open(file, module)?.map(Opened::Sparse),
        })
    }
}

impl Opened<'_> {
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Ints(tensor) => tensor.shape(),
            Self::FourBit(tensor) => tensor.shape(),
            Self::Sparse(tensor) => tensor.shape(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Ints(tensor) => tensor.dtype(),
            Self::FourBit(tensor) => tensor.dtype(),
            Self::Sparse(tensor) => tensor.dtype(),
        }
    }

    fn input_scale(&self) -> Option<f32> {
        match self {
            Self::Ints(tensor) => tensor.input_scale(),
            Self::FourBit(_) | Self::Sparse(_) => None,
        }
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        match self {
            Self::Ints(tensor) => tensor.blocks(rows),
            Self::FourBit(tensor) => tensor.blocks(rows),
            Self::Sparse(tensor) => tensor.blocks(rows),
        }
    }

    fn release(&self) {
        match self {
            Self::Ints(tensor) => tensor.release(),
            Self::FourBit(tensor) => tensor.release(),
            Self::Sparse(tensor) => tensor.release(),
        }
    }
}

/// True if two of every four weights of a module are stored, without quantization.
fn is_sparse_floats(file: &SafeTensors, quantization: &IntQuantization, module: &str) -> bool {
    let values = file.info(&format!("{module}.compressed"));
    !quantization.sparse.is_empty() && values.is_some_and(|values| values.dtype.is_some())
}

impl PackedFolder {
    /// `class_of` a module, by the name of its weight: `Linear` or `Embedding`.
    pub(super) fn open(
        file: SafeTensors,
        quantization: &Quantization,
        class_of: impl Fn(&str) -> &'static str,
    ) -> Result<Self, ModelError> {
        let mut matrices = BTreeMap::new();
        for name in file.names() {
            let parts = [".weight_packed", ".compressed", ".weight"];
            let Some(module) = parts.iter().find_map(|part| name.strip_suffix(part)) else { continue };
            let weight = format!("{module}.weight");
            let stored = match quantization {
                Quantization::FourBit => Stored::FourBit { weight: weight.clone() },
                Quantization::Ints(quantization) => match quantization.group_of(module, class_of(&weight)) {
                    _ if is_sparse_floats(&file, quantization, module) => Stored::Sparse { module: module.to_owned() },
                    Some(group) => Stored::Ints { module: module.to_owned(), group: group.clone() },
                    None => continue,
                },
            };
            let found = stored.open(&file)?.map(|found| (found.shape(), found.dtype(), found.input_scale()));
            if let Some((shape, dtype, input_scale)) = found {
                matrices.insert(weight, Packed { stored, shape, dtype, input_scale });
            }
        }
        Ok(Self { file, matrices })
    }

    pub(super) fn file(&self) -> &SafeTensors {
        &self.file
    }

    /// Names of tensors, with one name for the parts of each matrix.
    pub(super) fn names(&self) -> Vec<&str> {
        let of_module = compressed_tensors::PARTS.iter().map(|part| (*part, ".weight"));
        let parts: Vec<(&str, &str)> = of_module.chain(bitsandbytes::PARTS.iter().map(|part| (*part, ""))).collect();
        let is_part = |name: &str| {
            parts.iter().any(|(part, rest)| {
                let owner = name.strip_suffix(part).and_then(|name| name.strip_suffix('.'));
                owner.is_some_and(|owner| self.matrices.contains_key(&format!("{owner}{rest}")))
            })
        };
        let others = self.file.names().filter(|name| !self.matrices.contains_key(*name) && !is_part(name));
        self.matrices.keys().map(String::as_str).chain(others).collect()
    }

    /// Format and shape, without reading the values.
    pub(super) fn describe(&self, name: &str) -> Result<Option<(DType, &[usize])>, FormatError> {
        match self.matrices.get(name) {
            Some(matrix) => Ok(Some((matrix.dtype, &matrix.shape))),
            None => Ok(self.file.get(name)?.map(|view| (view.dtype, view.shape))),
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let Some(matrix) = self.matrices.get(name) else { return self.file.get(name) };
        let view = |found: Opened<'_>| TensorView {
            dtype: matrix.dtype,
            shape: &matrix.shape,
            bytes: Cow::Owned(found.blocks(0..matrix.shape[0])),
        };
        Ok(matrix.stored.open(&self.file)?.map(view))
    }

    /// One row of a matrix that is packed.
    pub(super) fn row(&self, name: &str, row: usize) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| row < matrix.shape[0]) else { return Ok(None) };
        Ok(matrix.stored.open(&self.file)?.map(|found| found.blocks(row..row + 1)))
    }

    /// The scale of a matrix's int8 inputs, where the file fixes it.
    pub(super) fn input_scale(&self, name: &str) -> Option<f32> {
        self.matrices.get(name)?.input_scale
    }

    /// Lets the kernel drop the pages of a matrix that is packed; false if this is none.
    pub(super) fn release(&self, name: &str) -> bool {
        let Some(matrix) = self.matrices.get(name) else { return false };
        if let Ok(Some(found)) = matrix.stored.open(&self.file) {
            found.release();
        }
        true
    }

    pub(super) fn source_of(&self, name: &str) -> Option<&Source> {
        self.file.source_of(name)
    }
}
