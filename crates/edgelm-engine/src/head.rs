//! What comes after the last layer: the final norm, and which tensor makes the logits.

use crate::{EngineError, block::load_vector};
use edgelm_kernels::{Cpu, rms_norm};
use edgelm_model::{TensorId, Tensors};

/// The final norm and the identity of the output head (its matrix is packed by `Engine`, and not needed to calibrate).
pub struct Head {
    gain: Vec<f32>,
    eps: f32,
    tensor: TensorId,
}

impl Head {
    /// Reads the norm.
    pub fn load(tensors: &dyn Tensors) -> Result<Self, EngineError> {
        let config = tensors.config();
        Ok(Self { gain: load_vector(tensors, TensorId::OutputNorm)?, eps: config.rms_norm_eps, tensor: config.head() })
    }

    /// The tensor that makes the logits: the embedding where tied.
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    pub(crate) fn norm(&self, cpu: &Cpu, hidden: &[f32], out: &mut [f32]) {
        rms_norm(cpu, hidden, &self.gain, self.eps, out);
    }

    /// The head's input for hidden states `[T, D]` after the last layer. For calibration.
    pub fn normed(&self, cpu: &Cpu, hidden: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; hidden.len()];
        self.norm(cpu, hidden, &mut out);
        out
    }
}
