//! How far the inputs of a layer have moved from the parent's, and weights that make up for it.

use crate::{CompressError, moments::Moments};
use edgelm_linalg::{Mat, MatMut, MatRef, product_f32, solve_positive_f32};

/// Part of the mean diagonal of H that weighs against moving a weight. mica-40m, 64 windows of 512 tokens, KL of Q3_K_M with
/// GPTQ, without moving 0.0393: 0.01 gives 0.0426 (fits the calibration text alone), 0.1 0.0407, 1 0.0366 to 0.0384, 3 0.0379; of
/// Q2_K, without 0.132: 1 gives 0.121 to 0.123. mica-5m at 1: Q3_K_M 0.0807 to 0.0719, Q4_0 0.0427 to 0.0375.
const RELUCTANCE: f32 = 1.0;

/// D = Σ (x̃ − x)ᵀ·x over the rows of a layer's inputs, `[K, K]`: x̃ in the parent, x in the model that is made from it.
pub(crate) struct Drift {
    sum: Mat<f32>,
    rows: usize,
}

impl Drift {
    /// Nothing seen yet, for inputs of `columns` values.
    pub(crate) fn new(columns: usize) -> Self {
        Self { sum: Mat::zeros(columns, columns), rows: 0 }
    }

    /// Adds rows `[T, K]` of both.
    pub(crate) fn add(&mut self, parent: &[f32], x: &[f32], rows: usize) {
        let columns = self.sum.nrows();
        let apart: Vec<f32> = parent.iter().zip(x).map(|(parent, x)| parent - x).collect();
        let apart = MatRef::from_row_major_slice(&apart, rows, columns);
        let x = MatRef::from_row_major_slice(x, rows, columns);
        product_f32(self.sum.as_mut(), true, apart.transpose(), x);
        self.rows += rows;
    }

    /// What makes up for it in weights whose inputs have `moments`. Errors where these are not finite.
    pub(crate) fn correction(&self, moments: &Moments) -> Result<Correction, CompressError> {
        let columns = self.sum.nrows();
        let order: Vec<usize> = (0..columns).collect();
        let h = moments.damped(RELUCTANCE, &order)?;
        let mut solved = solve_positive_f32(h.as_ref(), self.sum.transpose()).ok_or(CompressError::SingularHessian)?;
        let scale = 1.0 / self.rows.max(1) as f32;
        solved.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value *= scale));
        Ok(Correction(solved))
    }
}

/// (H + λ)⁻¹·Dᵀ, `[K, K]`.
pub(crate) struct Correction(Mat<f32>);

impl Correction {
    /// The weights W' `[N, K]` that give for x what `weights` W give for x̃, as nearly as it is worth moving them:
    ///
    /// min Σ |W·x̃ − W'·x|² + λ·|W' − W|², so W' = W + W·D·(H + λ)⁻¹, with λ the mean diagonal of H = Σ x·xᵀ. Weights of
    /// zero, which were pruned, stay zero.
    ///
    /// Numerics: f32; λ keeps the system far from singular.
    /// Source: the aim of GPTAQ (Li et al. 2025, arXiv:2504.02692), solved before rounding instead of during it.
    pub(crate) fn apply(&self, weights: &[f32]) -> Vec<f32> {
        let columns = self.0.nrows();
        let count = weights.len() / columns.max(1);
        let mut moved = weights.to_vec();
        let out = MatMut::from_row_major_slice_mut(&mut moved, count, columns);
        product_f32(out, true, MatRef::from_row_major_slice(weights, count, columns), self.0.transpose());
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
            drift.add(parent, x, 100);
        }
        let moved = drift.correction(&moments).unwrap().apply(&weights);
        let (parent, x) = drifted(T);
        let wanted = outputs(&weights, &parent);
        let (before, after) = (distance(&outputs(&weights, &x), &wanted), distance(&outputs(&moved, &x), &wanted));
        assert!(after < 0.5 * before, "{after} {before}");
    }

    #[test]
    fn pruned_weights_stay_pruned() {
        let mut random = Random(7);
        let (mut weights, parent, x) = (random.values(N * K), random.values(T * K), random.values(T * K));
        weights.iter_mut().step_by(3).for_each(|weight| *weight = 0.0);
        let (mut moments, mut drift) = (Moments::new(K), Drift::new(K));
        moments.add(&x, T);
        drift.add(&parent, &x, T);
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
        drift.add(&x, &x, T);
        assert_eq!(drift.correction(&moments).unwrap().apply(&weights), weights);
    }
}
