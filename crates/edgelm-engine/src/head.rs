//! What comes after the last layer: the final norm, the tensor that makes the logits, and what is done to them.

use crate::{
    EngineError,
    adapter::AdaptedRows,
    block::{Norm, load_matrix, load_vector},
};
use edgelm_kernels::{Cpu, Linear, Matrix, Scratch, scale, softcap};
use edgelm_model::{Style, TensorId, Tensors};

/// The final norm and the identity of the output head (its matrix is packed by `Engine`, and not needed to calibrate).
pub struct Head {
    norm: Option<Norm>,
    /// From the width of the model to that of the output head.
    projection: Option<Matrix>,
    bias: Option<Vec<f32>>,
    style: Style,
    tensor: TensorId,
}

impl Head {
    /// Reads the norm and the bias.
    pub fn load(tensors: &dyn Tensors, cpu: &Cpu) -> Result<Self, EngineError> {
        let config = tensors.config();
        let norm = || {
            let (gain, bias) = (TensorId::OutputNorm, TensorId::OutputNormBias);
            Norm::load(tensors, config.style.norm, config.hidden_size, gain, bias)
        };
        let bias = tensors.has(TensorId::OutputBias).then(|| load_vector(tensors, TensorId::OutputBias));
        Ok(Self {
            norm: config.style.output_norm.then(norm).transpose()?,
            projection: load_matrix(tensors, cpu, TensorId::OutputProjection)?,
            bias: bias.transpose()?,
            style: config.style,
            tensor: config.head(),
        })
    }

    /// The tensor that makes the logits: the embedding where tied.
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    pub(crate) fn norm(&self, cpu: &Cpu, hidden: &[f32], out: &mut Vec<f32>) {
        match &self.norm {
            Some(norm) => norm.apply(cpu, hidden, out),
            None => {
                out.clear();
                out.extend_from_slice(hidden);
            }
        }
        if let Some(weight) = &self.projection {
            let rows = out.len() / weight.cols().max(1);
            let mut projected = vec![0.0; rows * weight.rows()];
            let mut products = [Linear { weight, bias: None, out: &mut projected }];
            cpu.matmul_two_terms(out, rows, &mut products, &mut Scratch::default());
            *out = projected;
        }
    }

    /// The head's input for hidden states `[T, D]` after the last layer. For calibration.
    pub fn normed(&self, cpu: &Cpu, hidden: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.norm(cpu, hidden, &mut out);
        out
    }

    /// Logits `[T, V]` of normed hidden states `[T, D]`: cap(scale · (W x + b)).
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn adapted_logits(
        &self,
        cpu: &Cpu,
        weight: &Matrix,
        normed: &[f32],
        rows: usize,
        adapted: &AdaptedRows<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let bias = self.bias.as_deref();
        cpu.matmul_two_terms(normed, rows, &mut [Linear { weight, bias, out: &mut *out }], scratch);
        adapted.apply(cpu, self.tensor, normed, rows, bias, out, scratch);
        if self.style.logit_scale != 1.0 {
            scale(cpu, out, self.style.logit_scale);
        }
        if let Some(cap) = self.style.logit_softcap {
            softcap(cpu, out, cap);
        }
    }

    /// The same without adapters.
    pub fn logits(
        &self,
        cpu: &Cpu,
        weight: &Matrix,
        normed: &[f32],
        rows: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.adapted_logits(cpu, weight, normed, rows, &AdaptedRows::default(), out, scratch);
    }
}
