//! What a model in the making has lost, by its next-token distributions on a text: what layers and heads are chosen by.

use crate::{CompressError, logits::Logits};
use edgelm_engine::{Block, log_sum_exp};
use edgelm_kernels::Cpu;
use edgelm_model::Tensors;
use rayon::prelude::*;
use std::ops::ControlFlow;

/// Windows that losses are measured on: 8,000 positions. A choice costs one pass over them per candidate.
pub(crate) const PERPLEXITY_WINDOWS: usize = 16;

/// What turns hidden states into the likelihood of a text.
pub(crate) struct Likelihood<'a> {
    cpu: &'a Cpu,
    logits: Logits<'a>,
    hidden_size: usize,
    /// After its last layer.
    parent: Option<Vec<Vec<f32>>>,
}

impl<'a> Likelihood<'a> {
    /// Packs the output head.
    pub fn load(tensors: &dyn Tensors, cpu: &'a Cpu) -> Result<Self, CompressError> {
        Ok(Self { cpu, logits: Logits::load(tensors, cpu)?, hidden_size: tensors.config().hidden_size, parent: None })
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

    /// From here on, [`Self::loss`] is the divergence from the model whose states after the last layer these are.
    pub fn compare_with(&mut self, parent: Vec<Vec<f32>>) {
        self.parent = Some(parent);
    }

    /// Mean over the positions of each window, the last left out: the Kullback-Leibler divergence of the next token's
    /// distribution from the parent's, or with no parent the next token's negative log-likelihood.
    pub fn loss(&self, windows: &[Vec<u32>], hidden: &[Vec<f32>]) -> Result<f64, CompressError> {
        let (mut sum, mut count) = (0.0, 0);
        for (index, (window, hidden)) in windows.iter().zip(hidden).enumerate() {
            let logits = self.logits.of(hidden);
            let rows = logits.par_chunks_exact(self.logits.vocab_size());
            // Collected first: a sum in the order of the rows is the same for every number of threads.
            let losses: Vec<f64> = match &self.parent {
                Some(parent) => {
                    let wanted = self.logits.of(&parent[index]);
                    rows.zip(wanted.par_chunks_exact(self.logits.vocab_size()))
                        .map(|(is, was)| divergence(was, is))
                        .collect()
                }
                None => {
                    let next = window[1..].par_iter();
                    rows.zip(next).map(|(is, next)| log_sum_exp(is) - f64::from(is[*next as usize])).collect()
                }
            };
            let positions = window.len().saturating_sub(1);
            sum += losses.iter().take(positions).sum::<f64>();
            count += positions;
        }
        let loss = sum / count.max(1) as f64;
        if loss.is_finite() {
            return Ok(loss);
        }
        Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() })
    }
}

/// Σ p·(ln p − ln q) for p and q with logits `p` and `q`.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (total_p, total_q) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - total_p, f64::from(*q) - total_q);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_definition() {
        // p = (1/4, 3/4), q = (1/2, 1/2): ln 2 + ¼·ln ¼ + ¾·ln ¾, whatever is added to all logits.
        let wanted = 2f64.ln() + 0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln();
        assert!((divergence(&[5.0, 5.0 + 3f32.ln()], &[-2.0, -2.0]) - wanted).abs() < 1e-6);
        assert_eq!(divergence(&[1.0, 2.0, -3.0], &[1.0, 2.0, -3.0]), 0.0);
    }
}
