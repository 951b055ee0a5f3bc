//! Adapters: small changes to a model that are stored apart from it.
//!
//! The one thing a reader would get wrong: an [`Adapter`] is in the terms of the checkpoint it was opened for (its tensors, its
//! order of rows), whatever names and order its own file has.

mod gguf;
mod peft;
mod target;

use crate::{Checkpoint, ModelError, TensorId};
use edgelm_format::{FormatError, TensorView};
use edgelm_tensor::block::decode_row;
use std::{collections::HashMap, path::Path};

/// What an adapter changes, by tensor of the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adapter {
    /// Low-rank changes of matrices.
    pub lora: HashMap<TensorId, Lora>,
    /// Matrices that take the place of the model's, row-major.
    pub replaced: HashMap<TensorId, Vec<f32>>,
    /// Learned positions that attention sees before all others, by layer.
    pub prompts: HashMap<usize, AdaptionPrompt>,
}

/// W becomes W + s·B·A (Hu et al. 2021, arXiv:2106.09685), or m · (W + s·B·A) / ‖W + s·B·A‖ by rows (Liu et al. 2024,
/// arXiv:2402.09353).
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// r.
    pub rank: usize,
    /// A [r, K].
    pub a: Vec<f32>,
    /// s·B [N, r].
    pub b: Vec<f32>,
    /// m [N], where there is one.
    pub magnitude: Option<Vec<f32>>,
}

/// The output of attention grows by gate · softmax(q·kᵀ/√E) v, with k and v those of `prompt`, not rotated
/// (Zhang et al. 2023, arXiv:2303.16199).
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptionPrompt {
    /// [L, D].
    pub prompt: Vec<f32>,
    /// One for all heads.
    pub gate: f32,
}

impl Adapter {
    /// Opens a PEFT folder (LoRA, also rank-stabilized or with magnitudes; LLaMA-Adapter) or a GGUF adapter for a model.
    ///
    /// Errors name what the model has no place for, what is missing, and what is not supported.
    pub fn open(path: &Path, model: &Checkpoint) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|source| FormatError::Io {
            path: path.to_owned(),
            action: "opening",
            source,
        })?;
        if metadata.is_dir() { peft::open(path, model) } else { gguf::open(path, model) }
    }

    /// A change of one matrix, W + s·B·A or with magnitudes, for its rows [N, K].
    pub fn fold(&self, id: TensorId, weight: &mut [f32]) {
        if let Some(replaced) = self.replaced.get(&id) {
            weight.copy_from_slice(replaced);
        }
        let Some(lora) = self.lora.get(&id) else { return };
        let columns = lora.a.len() / lora.rank.max(1);
        for (row, weight) in weight.chunks_exact_mut(columns.max(1)).enumerate() {
            lora.add_row(row, weight);
            if let Some(magnitude) = &lora.magnitude {
                let norm = norm(weight);
                weight.iter_mut().for_each(|weight| *weight *= magnitude[row] / norm);
            }
        }
    }
}

impl Lora {
    /// Adds row `row` of s·B·A.
    fn add_row(&self, row: usize, out: &mut [f32]) {
        for (rank, a) in self.a.chunks_exact(out.len().max(1)).enumerate() {
            let b = self.b[row * self.rank + rank];
            out.iter_mut().zip(a).for_each(|(out, a)| *out += b * a);
        }
    }

    /// m / ‖W + s·B·A‖ of each row, for the rows that `read` gives; `None` without magnitudes.
    pub fn factors(
        &self,
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), ModelError>,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        let mut weight = vec![0.0; self.a.len() / self.rank.max(1)];
        let mut factors = Vec::with_capacity(magnitude.len());
        for (row, magnitude) in magnitude.iter().enumerate() {
            read(row, &mut weight)?;
            self.add_row(row, &mut weight);
            factors.push(magnitude / norm(&weight));
        }
        Ok(Some(factors))
    }
}

/// ‖x‖₂, summed in f64.
fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}

/// All values of a tensor of an adapter; it must have this shape.
fn values(name: &str, view: &TensorView<'_>, want: &[usize]) -> Result<Vec<f32>, ModelError> {
    if view.shape != want {
        let (got, want) = (view.shape.to_vec(), want.to_vec());
        return Err(ModelError::TensorShape { name: name.to_owned(), got, want });
    }
    let mut values = vec![0.0; view.elements()];
    let row = view.row_len().max(1);
    let row_bytes = view.dtype.row_bytes(row)?;
    for (bytes, values) in view.bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(row)) {
        decode_row(view.dtype, bytes, values)?;
    }
    Ok(values)
}
