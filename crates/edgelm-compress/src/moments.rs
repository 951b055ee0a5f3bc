//! Second moments of what flows into a linear layer, and their Cholesky factor: what error feedback steers by.

use crate::CompressError;
use edgelm_linalg::{Mat, MatRef, add_gram, cholesky, product_f32};

/// H = Σ x·xᵀ over the rows of a layer's inputs, `[K, K]`.
///
/// Numerics: f32 products and sums; a calibration set of 65,000 positions leaves five digits.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Lower triangle.
    sum: Mat<f32>,
    rows: usize,
}

impl Moments {
    /// Nothing seen yet, for inputs of `columns` values.
    pub fn new(columns: usize) -> Self {
        Self { sum: Mat::zeros(columns, columns), rows: 0 }
    }

    /// Adds rows `[T, K]`.
    pub fn add(&mut self, x: &[f32], rows: usize) {
        let x = MatRef::from_row_major_slice(x, rows, self.columns());
        add_gram(self.sum.as_mut(), x);
        self.rows += rows;
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.sum.nrows()
    }

    /// Positions seen.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Mean of x[k]².
    pub fn mean_squares(&self) -> Vec<f32> {
        (0..self.columns()).map(|k| self.sum[(k, k)] / self.rows.max(1) as f32).collect()
    }

    /// Those of x / s, for s `[K]`.
    pub(crate) fn divided(&self, scales: &[f32]) -> Self {
        let sum = Mat::from_fn(self.columns(), self.columns(), |i, j| self.sum[(i, j)] / (scales[i] * scales[j]));
        Self { sum, rows: self.rows }
    }

    /// H / rows with `damping` times the mean of its diagonal added to the diagonal, all of it, in the order `order` of
    /// columns. What no input reaches counts as independent of the rest.
    pub fn damped(&self, damping: f32, order: &[usize]) -> Result<Mat<f32>, CompressError> {
        let squares = self.mean_squares();
        let mean = squares.iter().map(|&square| f64::from(square)).sum::<f64>() / squares.len().max(1) as f64;
        if !mean.is_finite() {
            return Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() });
        }
        let extra = if mean > 0.0 { f64::from(damping) * mean } else { 1.0 } as f32;
        let scale = 1.0 / self.rows.max(1) as f32;
        let mut out = Mat::zeros(order.len(), order.len());
        for (j, &from_j) in order.iter().enumerate() {
            for (i, &from_i) in order.iter().enumerate() {
                out[(i, j)] = self.sum[(from_i.max(from_j), from_i.min(from_j))] * scale;
            }
            out[(j, j)] += extra;
        }
        Ok(out)
    }

    /// H / rows, both triangles, in the order of the columns.
    pub fn full(&self) -> Result<Mat<f32>, CompressError> {
        let order: Vec<usize> = (0..self.columns()).collect();
        self.damped(0.0, &order)
    }

    /// Mean over positions of |ΔW·x|² summed over output rows, for ΔW `[N, K]`; NaN where the moments are not finite. For
    /// several ΔW, [`quadratic`] with one [`Self::full`] is less work.
    pub fn output_error(&self, difference: &[f32]) -> f64 {
        self.full().map_or(f64::NAN, |h| quadratic(&h, difference))
    }
}

/// tr(W · H · Wᵀ) for `rows` W `[N, K]`.
pub(crate) fn quadratic(h: &Mat<f32>, rows: &[f32]) -> f64 {
    let columns = h.nrows();
    let n = rows.len() / columns.max(1);
    let rows = MatRef::from_row_major_slice(rows, n, columns);
    let mut product = Mat::zeros(n, columns);
    product_f32(product.as_mut(), false, rows, h.as_ref());
    let dot = |row: usize| (0..columns).map(|k| f64::from(product[(row, k)] * rows[(row, k)])).sum::<f64>();
    (0..n).map(dot).sum()
}

/// H = Lᵤ · D · Lᵤᵀ with Lᵤ unit lower triangular.
///
/// For a row of errors e = w − q: e·H·eᵀ = Σ_i D[i] · (e[i] + Σ_{j>i} e[j] · Lᵤ[j, i])². So with the columns after i
/// decided, the best that column i can aim at is w[i] + Σ_{j>i} e[j] · Lᵤ[j, i], and D[i] is what an error then costs.
/// Source: LDLQ (Chee et al. 2023, arXiv:2307.13304), which proves it the same as GPTQ (Frantar et al. 2022,
/// arXiv:2210.17323) without the inverse.
pub struct Factor {
    columns: usize,
    /// Row-major, `[K, K]`.
    unit: Vec<f32>,
    /// `[K]`.
    cost: Vec<f32>,
}

impl Factor {
    /// Numerics: f64. Errors where H is not positive definite in spite of its damping.
    pub fn new(h: &Mat<f32>) -> Result<Self, CompressError> {
        let columns = h.nrows();
        let wide = Mat::from_fn(columns, columns, |i, j| f64::from(h[(i, j)]));
        let lower = cholesky(wide.as_ref()).ok_or(CompressError::SingularHessian)?;
        let mut unit = vec![0.0; columns * columns];
        let mut cost = vec![0.0; columns];
        for j in 0..columns {
            let pivot = lower[(j, j)];
            cost[j] = (pivot * pivot) as f32;
            for i in j..columns {
                unit[i * columns + j] = (lower[(i, j)] / pivot) as f32;
            }
        }
        if cost.iter().any(|cost| !cost.is_finite() || *cost <= 0.0) {
            return Err(CompressError::SingularHessian);
        }
        Ok(Self { columns, unit, cost })
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// D.
    pub fn cost(&self) -> &[f32] {
        &self.cost
    }

    /// Row j of Lᵤ.
    pub fn row(&self, j: usize) -> &[f32] {
        &self.unit[j * self.columns..][..self.columns]
    }

    /// Lᵤ.
    pub fn unit(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.unit, self.columns, self.columns)
    }
}
