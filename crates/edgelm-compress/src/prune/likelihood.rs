//! How likely a text is to a model in the making: what layers and heads are chosen by.

use crate::{CompressError, logits::Logits};
use edgelm_engine::{Block, log_sum_exp};
use edgelm_kernels::Cpu;
use edgelm_model::Tensors;
use std::ops::ControlFlow;

/// Windows that perplexities are measured on: 8,000 positions. A choice costs one pass over them per candidate.
pub(crate) const PERPLEXITY_WINDOWS: usize = 16;

/// What turns hidden states into the likelihood of a text.
pub(crate) struct Likelihood<'a> {
    pub(super) cpu: &'a Cpu,
    logits: Logits<'a>,
    hidden_size: usize,
}

impl<'a> Likelihood<'a> {
    /// Packs the output head.
    pub fn load(tensors: &dyn Tensors, cpu: &'a Cpu) -> Result<Self, CompressError> {
        Ok(Self { cpu, logits: Logits::load(tensors, cpu)?, hidden_size: tensors.config().hidden_size })
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
        for (window, hidden) in windows.iter().zip(hidden) {
            let logits = self.logits.of(hidden);
            for (logits, &next) in logits.chunks_exact(self.logits.vocab_size()).zip(&window[1..]) {
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
