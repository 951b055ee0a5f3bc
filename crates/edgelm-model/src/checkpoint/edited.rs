//! Tensors as a pass sees them: those of a checkpoint, or those it has put in their place so far.

use super::Checkpoint;
use crate::{ModelConfig, ModelError, TensorId};
use edgelm_format::TensorView;
use edgelm_tensor::DType;
use std::collections::HashMap;

/// Where a decoder layer can be read from.
pub trait Tensors: Sync {
    /// What the tensors mean. Their shapes are those of this config.
    fn config(&self) -> &ModelConfig;

    /// A tensor. Errors if the config implies none of this name.
    fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError>;

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

/// A checkpoint with some of its tensors replaced, and the config that belongs to them.
pub struct Edited<'a> {
    base: &'a Checkpoint,
    config: ModelConfig,
    replaced: HashMap<TensorId, Replaced>,
}

impl<'a> Edited<'a> {
    /// Nothing replaced yet.
    pub fn new(base: &'a Checkpoint) -> Self {
        Self { base, config: base.config().clone(), replaced: HashMap::new() }
    }

    /// Puts a tensor in the place of the checkpoint's.
    pub fn replace(&mut self, id: TensorId, tensor: Replaced) {
        self.replaced.insert(id, tensor);
    }

    /// Takes a replacement out again; the checkpoint's own tensor is back.
    pub fn take(&mut self, id: TensorId) -> Option<Replaced> {
        self.replaced.remove(&id)
    }

    /// The checkpoint underneath.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
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
        match self.replaced.get(&id) {
            Some(tensor) => Ok(TensorView { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes }),
            None => self.base.tensor(id),
        }
    }

    fn release_part(&self, id: TensorId, part: &[u8]) {
        if !self.replaced.contains_key(&id) {
            self.base.release_part(id, part);
        }
    }
}
