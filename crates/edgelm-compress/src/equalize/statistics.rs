//! What calibration saw of the input of a group.

use crate::Moments;

/// Positions from which errors with rounded activations are estimated.
const SAMPLED_POSITIONS: usize = 256;

/// Of the input x `[T, K]` of a group of matrices.
pub(crate) struct Statistics {
    /// H.
    pub moments: Moments,
    /// Σ |x[k]|.
    magnitudes: Vec<f64>,
    /// max |x[k]|.
    pub peaks: Vec<f32>,
    /// Some of the rows, evenly spaced.
    pub sample: Vec<f32>,
    /// From one row of the sample to the next.
    stride: usize,
}

impl Statistics {
    /// Nothing seen yet; `positions` will come.
    pub fn new(columns: usize, positions: usize) -> Self {
        Self {
            moments: Moments::new(columns),
            magnitudes: vec![0.0; columns],
            peaks: vec![0.0; columns],
            sample: Vec::new(),
            stride: positions.div_ceil(SAMPLED_POSITIONS).max(1),
        }
    }

    /// Adds rows `[T, K]`.
    pub fn add(&mut self, x: &[f32], rows: usize) {
        for (index, row) in (self.positions()..).zip(x.chunks_exact(self.columns().max(1))) {
            for ((sum, peak), &value) in self.magnitudes.iter_mut().zip(&mut self.peaks).zip(row) {
                *sum += f64::from(value.abs());
                *peak = peak.max(value.abs());
            }
            if index % self.stride == 0 {
                self.sample.extend_from_slice(row);
            }
        }
        self.moments.add(x, rows);
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.moments.columns()
    }

    /// Positions seen.
    pub fn positions(&self) -> usize {
        self.moments.rows()
    }

    /// Mean of |x[k]|.
    pub fn mean_magnitudes(&self) -> Vec<f32> {
        self.magnitudes.iter().map(|sum| (sum / self.positions().max(1) as f64) as f32).collect()
    }
}
