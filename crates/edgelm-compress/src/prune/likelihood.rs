//! How likely a text is to a model in the making: what layers and heads are chosen by.

use crate::CompressError;
use edgelm_engine::{Block, Head, log_sum_exp};
use edgelm_kernels::{Cpu, Linear, Matrix, Scratch};
use edgelm_model::Tensors;
use std::ops::ControlFlow;

/// Windows that perplexities are measured on: 8,000 positions. A choice costs one pass over them per candidate.
pub(crate) const PERPLEXITY_WINDOWS: usize = 16;

/// What turns hidden states into the likelihood of a text.
pub(crate) struct Likelihood<'a> {
    cpu: &'a Cpu,
    head: Head,
    output: Matrix,
    hidden_size: usize,
}

impl<'a> Likelihood<'a> {
    /// Packs the output head.
    pub fn load(tensors: &dyn Tensors, cpu: &'a Cpu) -> Result<Self, CompressError> {
        let head = Head::load(tensors)?;
        let view = tensors.tensor(head.tensor())?;
        let output = Matrix::pack(cpu, view.dtype, view.rows(), view.row_len(), view.bytes);
        let output = output.map_err(edgelm_engine::EngineError::from)?;
        Ok(Self { cpu, head, output, hidden_size: tensors.config().hidden_size })
    }

    /// Runs all windows through a layer.
    pub fn run(&self, tensors: &dyn Tensors, layer: usize, hidden: &mut [Vec<f32>]) -> Result<(), CompressError> {
        let block = Block::load(tensors, self.cpu, layer)?;
        for hidden in hidden {
            let rows = hidden.len() / self.hidden_size;
            let _ = block.run_window(self.cpu, hidden, rows, &mut |_, _, _| ControlFlow::Continue(()));
        }
        Ok(())
    }

    /// exp of the mean negative log-likelihood of each window's tokens after the first.
    pub fn perplexity(&self, windows: &[Vec<u32>], hidden: &[Vec<f32>]) -> Result<f64, CompressError> {
        let (mut sum, mut count) = (0.0, 0);
        let vocab = self.output.rows();
        let mut scratch = Scratch::default();
        for (window, hidden) in windows.iter().zip(hidden) {
            let normed = self.head.normed(self.cpu, hidden);
            let mut logits = vec![0.0; window.len() * vocab];
            let mut linear = [Linear { weight: &self.output, bias: None, out: &mut logits }];
            self.cpu.matmul(&normed, window.len(), &mut linear, &mut scratch);
            for (logits, &next) in logits.chunks_exact(vocab).zip(&window[1..]) {
                sum += log_sum_exp(logits) - f64::from(logits[next as usize]);
                count += 1;
            }
        }
        let perplexity = (sum / f64::from(count.max(1))).exp();
        if perplexity.is_finite() {
            return Ok(perplexity);
        }
        Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() })
    }
}
