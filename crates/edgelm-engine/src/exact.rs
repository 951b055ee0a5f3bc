//! Matrices of exactly the values that a checkpoint means, multiplied in f32: the reference of everything faster.
//!
//! Floats are packed as they are. The rows of quantized weights are decoded whenever they are multiplied, so that memory stays that
//! of the file; a token of a large model takes seconds.

use crate::{EngineError, block::Matrices};
use edgelm_kernels::{Cpu, Matrix, RowSource};
use edgelm_model::{Checkpoint, TensorId};
use std::{ops::Range, sync::Arc};

/// Rows of one tensor.
struct Rows {
    checkpoint: Arc<Checkpoint>,
    id: TensorId,
}

impl RowSource for Rows {
    fn write(&self, rows: Range<usize>, out: &mut [f32]) {
        // The tensor was checked when the checkpoint was opened. Should it fail after all, results show it.
        if self.checkpoint.values(self.id, rows, out).is_err() {
            out.fill(f32::NAN);
        }
    }
}

impl Matrices {
    /// All of `ids`.
    pub(crate) fn load_exact(checkpoint: &Arc<Checkpoint>, cpu: &Cpu, ids: &[TensorId]) -> Result<Self, EngineError> {
        let (mut floats, mut coded) = (Vec::new(), Vec::new());
        for &id in ids {
            let to = if checkpoint.is_coded(id)? { &mut coded } else { &mut floats };
            to.push(id);
        }
        let mut matrices = Self::load(&**checkpoint, cpu, &floats)?;
        for id in coded {
            let (_, shape) = checkpoint.describe(id)?;
            let cols = shape.last().copied().unwrap_or(1);
            let rows = shape.iter().rev().skip(1).product();
            let source = Arc::new(Rows { checkpoint: Arc::clone(checkpoint), id });
            matrices.0.insert(id, Matrix::streamed(cpu, rows, cols, source));
        }
        Ok(matrices)
    }
}
