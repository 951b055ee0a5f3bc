//! A folder whose matrices are stored as integers with scales: seen as one of block formats.
//!
//! Nothing is converted before it is asked for, and nothing that was converted is kept.

use crate::ModelError;
use edgelm_format::{
    FormatError, Source, TensorView,
    compressed_tensors::{Group, IntQuantization, IntTensor, PARTS},
    safetensors::SafeTensors,
};
use edgelm_tensor::DType;
use std::{borrow::Cow, collections::BTreeMap};

/// The weight files and what their parts make.
pub(super) struct PackedFolder {
    file: SafeTensors,
    /// By the name that the weight would have.
    matrices: BTreeMap<String, Packed>,
}

struct Packed {
    module: String,
    group: Group,
    shape: [usize; 2],
    dtype: DType,
    input_scale: Option<f32>,
}

impl PackedFolder {
    /// `class_of` a module, by the name of its weight: `Linear` or `Embedding`.
    pub(super) fn open(
        file: SafeTensors,
        quantization: &IntQuantization,
        class_of: impl Fn(&str) -> &'static str,
    ) -> Result<Self, ModelError> {
        let mut matrices = BTreeMap::new();
        for name in file.names() {
            let Some(module) = name.strip_suffix(".weight_packed").or_else(|| name.strip_suffix(".weight")) else {
                continue;
            };
            let weight = format!("{module}.weight");
            let Some(group) = quantization.group_of(module, class_of(&weight)) else { continue };
            if let Some(found) = IntTensor::open(&file, module, group)? {
                let (shape, dtype, input_scale) = (found.shape(), found.dtype(), found.input_scale());
                let (module, group) = (module.to_owned(), group.clone());
                matrices.insert(weight, Packed { module, group, shape, dtype, input_scale });
            }
        }
        Ok(Self { file, matrices })
    }

    pub(super) fn file(&self) -> &SafeTensors {
        &self.file
    }

    /// Names of tensors, with one name for the parts of each matrix.
    pub(super) fn names(&self) -> Vec<&str> {
        let is_part = |name: &str| {
            let module = PARTS.iter().find_map(|part| name.strip_suffix(part)?.strip_suffix('.'));
            module.is_some_and(|module| self.matrices.contains_key(&format!("{module}.weight")))
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
        let view = |found: IntTensor<'_>| TensorView {
            dtype: matrix.dtype,
            shape: &matrix.shape,
            bytes: Cow::Owned(found.blocks(0..matrix.shape[0])),
        };
        Ok(IntTensor::open(&self.file, &matrix.module, &matrix.group)?.map(view))
    }

    /// One row of a matrix that is packed.
    pub(super) fn row(&self, name: &str, row: usize) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(matrix) = self.matrices.get(name).filter(|matrix| row < matrix.shape[0]) else { return Ok(None) };
        let found = IntTensor::open(&self.file, &matrix.module, &matrix.group)?;
        Ok(found.map(|found| found.blocks(row..row + 1)))
    }

    /// The scale of a matrix's int8 inputs, where the file fixes it.
    pub(super) fn input_scale(&self, name: &str) -> Option<f32> {
        self.matrices.get(name)?.input_scale
    }

    /// Lets the kernel drop the pages of a matrix that is packed; false if this is none.
    pub(super) fn release(&self, name: &str) -> bool {
        let Some(matrix) = self.matrices.get(name) else { return false };
        if let Ok(Some(found)) = IntTensor::open(&self.file, &matrix.module, &matrix.group) {
            found.release();
        }
        true
    }

    pub(super) fn source_of(&self, name: &str) -> Option<&Source> {
        self.file.source_of(name)
    }
}
