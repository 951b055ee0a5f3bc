//! The output head of a model in the making: hidden states in, logits out.

use crate::CompressError;
use edgelm_engine::Head;
use edgelm_kernels::{Cpu, Matrix, Scratch};
use edgelm_model::Tensors;

/// The final norm and the packed output head.
pub(crate) struct Logits<'a> {
    cpu: &'a Cpu,
    head: Head,
    matrix: Matrix,
}

impl<'a> Logits<'a> {
    /// Packs the output head.
    pub fn load(tensors: &dyn Tensors, cpu: &'a Cpu) -> Result<Self, CompressError> {
        let head = Head::load(tensors, cpu)?;
        let view = tensors.tensor(head.tensor())?;
        let matrix = Matrix::pack(cpu, view.dtype, view.rows(), view.row_len(), &view.bytes)
            .map_err(edgelm_engine::EngineError::from)?;
        Ok(Self { cpu, head, matrix })
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.matrix.rows()
    }

    /// `[T, V]` for hidden states `[T, D]` after the last layer.
    pub fn of(&self, hidden: &[f32]) -> Vec<f32> {
        let normed = self.head.normed(self.cpu, hidden);
        let rows = hidden.len() / self.matrix.cols().max(1);
        let mut out = vec![0.0; rows * self.matrix.rows()];
        self.head.logits(self.cpu, &self.matrix, &normed, rows, &mut out, &mut Scratch::default());
        out
    }
}
