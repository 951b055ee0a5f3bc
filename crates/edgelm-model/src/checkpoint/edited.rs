//! Tensors as a pass sees them: those of a checkpoint, or those it has put in their place so far.

use super::{Checkpoint, row_of};
use crate::{ModelConfig, ModelError, TensorId};
use edgelm_format::{Reordered, TensorView};
use edgelm_tensor::{DType, block::decode_row};
use std::{borrow::Cow, collections::HashMap, ops::Range};

/// Where a decoder layer can be read from.
pub trait Tensors: Sync {
    /// What the tensors mean. Their shapes are those of this config.
    fn config(&self) -> &ModelConfig;

    /// A tensor. Errors if the config implies none of this name.
    fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError>;

    /// Format and shape of a tensor, without reading its values.
    fn describe(&self, id: TensorId) -> Result<(DType, &[usize]), ModelError>;

    /// Format and bytes of one row of a matrix.
    fn row(&self, id: TensorId, row: usize) -> Result<(DType, Cow<'_, [u8]>), ModelError>;

    /// A matrix with its columns in another order, see [`Checkpoint::reordered`].
    fn reordered(&self, id: TensorId) -> Result<Option<Reordered>, ModelError>;

    /// Rows of a tensor as the values that are meant, see [`Checkpoint::values`].
    fn values(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<(), ModelError>;

    /// The scale of a linear layer's int8 inputs, where it is fixed.
    fn input_scale(&self, id: TensorId) -> Option<f32>;

    /// A part of a tensor's bytes was read and is not needed any more.
    fn release_part(&self, id: TensorId, part: &[u8]);

    /// True if the config implies it (biases, output head and q/k norms are optional).
    fn has(&self, id: TensorId) -> bool {
        self.config().tensor_shape(id).is_some()
    }
}

impl Tensors for Checkpoint {
    fn config(&self) -> &ModelConfig {
        Checkpoint::config(self)
    }

    fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError> {
        Checkpoint::tensor(self, id)
    }

    fn describe(&self, id: TensorId) -> Result<(DType, &[usize]), ModelError> {
        Checkpoint::describe(self, id)
    }

    fn row(&self, id: TensorId, row: usize) -> Result<(DType, Cow<'_, [u8]>), ModelError> {
        Checkpoint::row(self, id, row)
    }

    fn reordered(&self, id: TensorId) -> Result<Option<Reordered>, ModelError> {
        Checkpoint::reordered(self, id)
    }

    fn values(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<(), ModelError> {
        Checkpoint::values(self, id, rows, out)
    }

    fn input_scale(&self, id: TensorId) -> Option<f32> {
        Checkpoint::input_scale(self, id)
    }

    fn release_part(&self, id: TensorId, part: &[u8]) {
        Checkpoint::release_part(self, id, part);
    }
}

/// A tensor held in memory.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// Its format.
    pub dtype: DType,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Exactly the bytes of that shape in that format.
    pub bytes: Vec<u8>,
}

impl Replaced {
    /// Values kept as f32.
    pub fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self { dtype: DType::F32, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }
}

/// A checkpoint with some of its tensors replaced, perhaps without some of its layers, and the config that belongs to it.
pub struct Edited<'a> {
    base: &'a Checkpoint,
    config: ModelConfig,
    /// By the id that they have in the checkpoint.
    replaced: HashMap<TensorId, Replaced>,
    /// Of int8 inputs, the same.
    input_scales: HashMap<TensorId, f32>,
    /// Which layer of the checkpoint each layer is.
    layers: Vec<usize>,
}

impl<'a> Edited<'a> {
    /// Nothing replaced yet.
    pub fn new(base: &'a Checkpoint) -> Self {
        Self {
            base,
            config: base.config().clone(),
            replaced: HashMap::new(),
            input_scales: HashMap::new(),
            layers: (0..base.config().layers.len()).collect(),
        }
    }

    /// Puts a tensor in the place of the checkpoint's.
    pub fn replace(&mut self, id: TensorId, tensor: Replaced) {
        self.replaced.insert(self.source(id), tensor);
    }

    /// Fixes the scale of a linear layer's int8 inputs.
    pub fn fix_input_scale(&mut self, id: TensorId, scale: f32) {
        self.input_scales.insert(self.source(id), scale);
    }

    /// Takes a replacement out again; the checkpoint's own tensor is back.
    pub fn take(&mut self, id: TensorId) -> Option<Replaced> {
        self.replaced.remove(&self.source(id))
    }

    /// True for a tensor that is not the checkpoint's own.
    pub fn is_replaced(&self, id: TensorId) -> bool {
        self.replaced.contains_key(&self.source(id))
    }

    /// The checkpoint underneath.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// Leaves a layer out; those after it move down by one. Panics if there is no such layer.
    pub fn remove_layer(&mut self, index: usize) {
        let source = self.layers.remove(index);
        self.config.layers.remove(index);
        self.replaced.retain(|id, _| !matches!(id, TensorId::Layer(layer, _) if *layer == source));
    }

    /// Which layer of the checkpoint each layer is.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The id that a tensor has in the checkpoint.
    pub fn source(&self, id: TensorId) -> TensorId {
        match id {
            TensorId::Layer(index, tensor) => {
                TensorId::Layer(self.layers.get(index).copied().unwrap_or(usize::MAX), tensor)
            }
            other => other,
        }
    }

    /// The config, for passes that change widths.
    pub fn config_mut(&mut self) -> &mut ModelConfig {
        &mut self.config
    }
}

impl Tensors for Edited<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError> {
        match self.replaced.get(&self.source(id)) {
            Some(tensor) => {
                Ok(TensorView { dtype: tensor.dtype, shape: &tensor.shape, bytes: tensor.bytes.as_slice().into() })
            }
            None => self.base.tensor(self.source(id)),
        }
    }

    fn describe(&self, id: TensorId) -> Result<(DType, &[usize]), ModelError> {
        match self.replaced.get(&self.source(id)) {
            Some(tensor) => Ok((tensor.dtype, &tensor.shape)),
            None => self.base.describe(self.source(id)),
        }
    }

    fn row(&self, id: TensorId, row: usize) -> Result<(DType, Cow<'_, [u8]>), ModelError> {
        match self.replaced.get(&self.source(id)) {
            Some(_) => Ok(row_of(self.tensor(id)?, row)),
            None => self.base.row(self.source(id), row),
        }
    }

    fn reordered(&self, id: TensorId) -> Result<Option<Reordered>, ModelError> {
        match self.is_replaced(id) {
            true => Ok(None),
            false => self.base.reordered(self.source(id)),
        }
    }

    fn values(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<(), ModelError> {
        let Some(tensor) = self.replaced.get(&self.source(id)) else {
            return self.base.values(self.source(id), rows, out);
        };
        let row_bytes = tensor.dtype.row_bytes(tensor.shape.last().copied().unwrap_or(1))?;
        match tensor.bytes.get(rows.start * row_bytes..rows.end * row_bytes) {
            Some(bytes) => Ok(decode_row(tensor.dtype, bytes, out)?),
            None => Err(ModelError::TensorShape {
                name: self.base.stored_name(self.source(id)),
                got: vec![rows.end],
                want: tensor.shape.clone(),
            }),
        }
    }

    fn input_scale(&self, id: TensorId) -> Option<f32> {
        let id = self.source(id);
        self.input_scales.get(&id).copied().or_else(|| self.base.input_scale(id))
    }

    fn release_part(&self, id: TensorId, part: &[u8]) {
        let id = self.source(id);
        if !self.replaced.contains_key(&id) {
            self.base.release_part(id, part);
        }
    }
}
