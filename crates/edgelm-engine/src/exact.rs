//! Matrices of exactly the values that a checkpoint means, multiplied in f32: the reference of everything faster.
//!
//! Floats are packed as they are. The rows of quantized weights are decoded whenever they are multiplied, so that memory stays that
//! of the file; a token of a large model takes seconds.

use crate::{EngineError, block::Matrices};
use edgelm_kernels::{Cpu, Matrix, RowSource};
use edgelm_model::{Checkpoint, TensorId};
use std::{ops::Range, sync::Arc};

/// How products with quantized weights are computed. Unquantized ones meet f32 inputs in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Exact where a model is so small that nobody waits for it (less than 2^20 weights in its matrices), else fast.
    ///
    /// Narrow layers are those that rounded inputs hurt most (logits of two layers of width 128 with a spread of 1 are off by 0.1 to
    /// 0.2), and a token of such a model takes a millisecond either way.
    #[default]
    Auto,
    /// With integer kernels: weights packed as blocks, inputs rounded to int8, and a cache as precise as the weights.
    Fast,
    /// In f32, on exactly the values that the checkpoint means; no weights, inputs or caches are rounded. Quantized weights
    /// are decoded for every product anew, which takes no memory and much time.
    Exact,
}

impl Arithmetic {
    /// What it means for the matrices `ids` of a checkpoint.
    pub(crate) fn is_exact(self, checkpoint: &Checkpoint, ids: &[TensorId]) -> Result<bool, EngineError> {
        match self {
            Self::Fast => return Ok(false),
            Self::Exact => return Ok(true),
            Self::Auto => {}
        }
        let mut weights = 0usize;
        for &id in ids {
            weights = weights.saturating_add(checkpoint.describe(id)?.1.iter().product());
        }
        Ok(weights < SMALL)
    }
}

/// Weights of the matrices of a model below which `Auto` is exact: 4 MiB in f32.
const SMALL: usize = 1 << 20;

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
