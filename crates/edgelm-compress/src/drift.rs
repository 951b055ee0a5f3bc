//! How far the inputs of a layer have moved from the parent's, and weights that make up for it.

use crate::{CompressError, moments::Moments, walk::Read};
use edgelm_linalg::{Mat, MatMut, MatRef, product_f32, solve_positive_f32};

/// Part of the mean diagonal of H that weighs against moving a weight. mica-40m, 64 windows of 512 tokens, KL of Q3_K_M with
/// GPTQ, without moving 0.0393: 0.01 gives 0.0426 (fits the calibration text alone), 0.1 0.0407, 1 0.0366 to 0.0384, 3 0.0379; of
/// Q2_K, without 0.132: 1 gives 0.121 to 0.123. mica-5m at 1: Q3_K_M 0.0807 to 0.0719, Q4_0 0.0427 to 0.0375.
/// The stream made up for as well, mica-5m: Q4_0 0.0367 to 0.0356, Q3_K_M 0.0710 to 0.0707, Q2_K 0.256 to 0.248 (0.270 at 0.3); mica-40m:
/// Q4_0 0.0188 to 0.0185.
const RELUCTANCE: f32 = 1.0;

/// How far a layer's inputs x `[T, K]`, and the stream r `[T, D]` that its outputs join, are from the parent's x̃ and r̃:
/// Σ (x̃ − x)ᵀ·x and Σ (r̃ − r)ᵀ·x over their rows.
pub(crate) struct Drift {
    inputs: Mat<f32>,
    /// `None` where outputs join no stream.
    stream: Option<Mat<f32>>,
    rows: usize,
}

impl Drift {
    /// Nothing seen yet, for inputs of `columns` values.
    pub(crate) fn new(columns: usize) -> Self {
        Self { inputs: Mat::zeros(columns, columns), stream: None, rows: 0 }
    }

    /// Outputs join a stream of `hidden_size` values, as they are.
    pub(crate) fn with_stream(self, hidden_size: usize) -> Self {
        Self { stream: Some(Mat::zeros(hidden_size, self.inputs.ncols())), ..self }
    }

    /// Adds what the matrix reads of a window in the parent, and here.
    pub(crate) fn add(&mut self, parent: &Read, here: &Read) {
        let x = MatRef::from_row_major_slice(&here.x, here.rows, self.inputs.ncols());
        add_apart(&mut self.inputs, &parent.x, &here.x, x);
        if let Some(stream) = &mut self.stream {
            add_apart(stream, &parent.stream, &here.stream, x);
        }
        self.rows += here.rows;
    }

    /// What makes up for it in weights whose inputs have `moments`. Errors where these are not finite.
    pub(crate) fn correction(&self, moments: &Moments) -> Result<Correction, CompressError> {
        let order: Vec<usize> = (0..self.inputs.ncols()).collect();
        let h = moments.damped(RELUCTANCE, &order)?;
        let solved = |sum: &Mat<f32>| -> Result<_, CompressError> {
            let mut solved = solve_positive_f32(h.as_ref(), sum.transpose()).ok_or(CompressError::SingularHessian)?;
            let scale = 1.0 / self.rows.max(1) as f32;
            solved.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value *= scale));
            Ok(solved)
        };
        Ok(Correction { inputs: solved(&self.inputs)?, stream: self.stream.as_ref().map(solved).transpose()? })
    }
}

/// Adds Σ (parent − here)ᵀ·x over rows.
fn add_apart(sum: &mut Mat<f32>, parent: &[f32], here: &[f32], x: MatRef<'_, f32>) {
    let apart: Vec<f32> = parent.iter().zip(here).map(|(parent, here)| parent - here).collect();
    let apart = MatRef::from_row_major_slice(&apart, x.nrows(), sum.nrows());
    product_f32(sum.as_mut(), true, apart.transpose(), x);
}

/// (H + λ)⁻¹·Σ xᵀ·(x̃ − x) `[K, K]`, and (H + λ)⁻¹·Σ xᵀ·(r̃ − r) `[K, D]`.
pub(crate) struct Correction {
    inputs: Mat<f32>,
    stream: Option<Mat<f32>>,
}

impl Correction {
    /// The weights W' `[N, K]` that make of r and x what `weights` W make of r̃ and x̃ in the parent, as nearly as it is worth
    /// moving them (without a stream, r and r̃ are 0):
    ///
    /// min Σ |(r̃ + W·x̃) − (r + W'·x)|² + λ·|W' − W|², so W' = W + (W·Σ (x̃ − x)ᵀ·x + Σ (r̃ − r)ᵀ·x)·(H + λ)⁻¹, with λ the mean
    /// diagonal of H = Σ xᵀ·x. Weights of zero, which were pruned, stay zero.
    ///
    /// Numerics: f32; λ keeps the system far from singular.
    /// Source: the aim of GPTAQ (Li et al. 2025, arXiv:2504.02692), solved before rounding instead of during it, and with what
    /// the layers before have left of the stream's error.
    pub(crate) fn apply(&self, weights: &[f32]) -> Vec<f32> {
        let columns = self.inputs.nrows();
        let count = weights.len() / columns.max(1);
        let mut moved = weights.to_vec();
        let out = MatMut::from_row_major_slice_mut(&mut moved, count, columns);
        product_f32(out, true, MatRef::from_row_major_slice(weights, count, columns), self.inputs.transpose());
        if let Some(stream) = &self.stream {
            for (n, row) in moved.chunks_mut(columns.max(1)).enumerate() {
                row.iter_mut().enumerate().for_each(|(k, moved)| *moved += stream[(k, n)]);
            }
        }
        moved.iter_mut().zip(weights).filter(|(_, weight)| **weight == 0.0).for_each(|(moved, _)| *moved = 0.0);
        moved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random::Random;

    const K: usize = 24;
    const N: usize = 6;
    const T: usize = 400;

    fn outputs(weights: &[f32], x: &[f32]) -> Mat<f32> {
        let mut out = Mat::zeros(x.len() / K, N);
        let weights = MatRef::from_row_major_slice(weights, N, K).transpose();
        product_f32(out.as_mut(), false, MatRef::from_row_major_slice(x, x.len() / K, K), weights);
        out
    }

    /// Without a stream.
    fn read(x: &[f32]) -> Read {
        Read { x: x.to_vec(), rows: x.len() / K, stream: Vec::new() }
    }

    fn distance(a: &Mat<f32>, b: &Mat<f32>) -> f64 {
        let at = |i, j| f64::from(a[(i, j)] - b[(i, j)]).powi(2);
        (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| (i, j))).map(|(i, j)| at(i, j)).sum()
    }

    #[test]
    fn a_drift_that_repeats_is_followed_on_other_inputs_too() {
        let mut random = Random(11);
        let weights = random.values(N * K);
        // Half of a channel leaks into the next one.
        let mut drifted = |count: usize| {
            let parent = random.values(count * K);
            let leak = |row: &[f32]| (0..K).map(|k| row[k] + 0.5 * row[(k + 1) % K]).collect::<Vec<_>>();
            let x: Vec<f32> = parent.chunks(K).flat_map(leak).collect();
            (parent, x)
        };
        let (parent, x) = drifted(T);
        let (mut moments, mut drift) = (Moments::new(K), Drift::new(K));
        for (parent, x) in parent.chunks(100 * K).zip(x.chunks(100 * K)) {
            moments.add(x, 100);
            drift.add(&read(parent), &read(x));
        }
        let moved = drift.correction(&moments).unwrap().apply(&weights);
        let (parent, x) = drifted(T);
        let wanted = outputs(&weights, &parent);
        let (before, after) = (distance(&outputs(&weights, &x), &wanted), distance(&outputs(&moved, &x), &wanted));
        assert!(after < 0.5 * before, "{after} {before}");
    }

    #[test]
    fn a_stream_that_lags_behind_its_inputs_is_made_up_for() {
        let mut random = Random(3);
        let weights = random.values(N * K);
        // The stream lacks a fixed map of x, and so does a new one with other values.
        let lost = random.values(N * K);
        let mut window = |count: usize| {
            let x = random.values(count * K);
            let missing = outputs(&lost, &x);
            let stream: Vec<f32> = (0..count * N).map(|i| missing[(i / N, i % N)]).collect();
            let parent = Read { x: x.clone(), rows: count, stream };
            (parent, Read { x, rows: count, stream: vec![0.0; count * N] })
        };
        let (mut moments, mut drift) = (Moments::new(K), Drift::new(K).with_stream(N));
        for _ in 0..4 {
            let (parent, here) = window(100);
            moments.add(&here.x, here.rows);
            drift.add(&parent, &here);
        }
        let moved = drift.correction(&moments).unwrap().apply(&weights);
        let (parent, here) = window(T);
        // r̃ + W·x̃ with r = 0.
        let mut wanted = outputs(&weights, &parent.x);
        for t in 0..T {
            (0..N).for_each(|n| wanted[(t, n)] += parent.stream[t * N + n]);
        }
        let before = distance(&outputs(&weights, &here.x), &wanted);
        let after = distance(&outputs(&moved, &here.x), &wanted);
        // λ is the mean diagonal of H: of independent inputs half of it is made up for.
        assert!(after < 0.3 * before, "{after} {before}");
    }

    #[test]
    fn pruned_weights_stay_pruned() {
        let mut random = Random(7);
        let (mut weights, parent, x) = (random.values(N * K), random.values(T * K), random.values(T * K));
        weights.iter_mut().step_by(3).for_each(|weight| *weight = 0.0);
        let (mut moments, mut drift) = (Moments::new(K), Drift::new(K));
        moments.add(&x, T);
        drift.add(&read(&parent), &read(&x));
        let moved = drift.correction(&moments).unwrap().apply(&weights);
        let is_same = |index: usize| moved[index] == weights[index];
        assert!((0..weights.len()).all(|index| is_same(index) == (index % 3 == 0)));
    }

    #[test]
    fn without_drift_nothing_moves() {
        let mut random = Random(5);
        let (weights, x) = (random.values(N * K), random.values(T * K));
        let (mut moments, mut drift) = (Moments::new(K), Drift::new(K));
        moments.add(&x, T);
        drift.add(&read(&x), &read(&x));
        assert_eq!(drift.correction(&moments).unwrap().apply(&weights), weights);
    }
}
