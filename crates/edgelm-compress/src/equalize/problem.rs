//! A group of matrices and its input, as the searches see it: scales in, errors of the group's outputs out.

use super::{ActivationRounding, Statistics};
use crate::{CompressError, MatrixFormat, moments::quadratic};
use edgelm_linalg::{Mat, MatRef, product_f32};

/// Rows of a matrix from which its errors are estimated.
const SAMPLED_ROWS: usize = 128;

/// Part of what the largest channel has that the smallest counts as having: a channel that is never used takes no scale
/// beyond what f16 scales of blocks can hold.
const LEAST: f32 = 1e-4;

/// Some rows of a matrix, evenly spaced, and the format that it will have.
pub(crate) struct Matrix {
    pub format: MatrixFormat,
    /// `[n, K]`.
    pub rows: Vec<f32>,
    /// Rows of the matrix for each of these.
    share: f64,
}

impl Matrix {
    /// Of `weights` `[N, K]`.
    pub fn sampled(format: MatrixFormat, weights: &[f32], columns: usize) -> Self {
        let count = weights.len() / columns.max(1);
        let stride = count.div_ceil(SAMPLED_ROWS).max(1);
        let rows: Vec<f32> = weights.chunks_exact(columns.max(1)).step_by(stride).flatten().copied().collect();
        let share = weights.len() as f64 / rows.len().max(1) as f64;
        Self { format, rows, share }
    }
}

/// A group.
pub(crate) struct Problem<'a> {
    pub matrices: &'a [Matrix],
    pub statistics: &'a Statistics,
    /// Channel of each column.
    channels: &'a [usize],
    /// Columns of each channel.
    columns_of: Vec<usize>,
}

impl<'a> Problem<'a> {
    /// `channels` [K] must name every channel from 0 on.
    pub fn new(matrices: &'a [Matrix], statistics: &'a Statistics, channels: &'a [usize]) -> Self {
        let mut columns_of = vec![0; channels.iter().max().map_or(0, |last| last + 1)];
        channels.iter().for_each(|&channel| columns_of[channel] += 1);
        Self { matrices, statistics, channels, columns_of }
    }

    /// Scales that change nothing.
    pub fn ones(&self) -> Vec<f32> {
        vec![1.0; self.columns_of.len()]
    }

    /// [C] → [K].
    pub fn by_column(&self, scales: &[f32]) -> Vec<f32> {
        self.channels.iter().map(|&channel| scales[channel]).collect()
    }

    /// [K] → [C]: means of the columns of each channel.
    pub fn channel_means(&self, columns: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.columns_of.len()];
        self.channels.iter().zip(columns).for_each(|(&channel, value)| sums[channel] += value);
        sums.iter().zip(&self.columns_of).map(|(sum, &count)| sum / count.max(1) as f32).collect()
    }

    /// [K] → [C]: the largest of the columns of each channel.
    pub fn channel_peaks(&self, columns: &[f32]) -> Vec<f32> {
        let mut peaks = vec![0.0f32; self.columns_of.len()];
        self.channels.iter().zip(columns).for_each(|(&channel, &value)| peaks[channel] = peaks[channel].max(value));
        peaks
    }

    /// max |W[:, k]| over all matrices.
    pub fn weight_peaks(&self) -> Vec<f32> {
        let mut peaks = vec![0.0f32; self.channels.len()];
        let columns = peaks.len().max(1);
        for row in self.matrices.iter().flat_map(|matrix| matrix.rows.chunks_exact(columns)) {
            peaks.iter_mut().zip(row).for_each(|(peak, weight)| *peak = peak.max(weight.abs()));
        }
        peaks
    }

    /// Mean squares of x / s.
    fn importance(&self, columns: &[f32]) -> Vec<f32> {
        let squares = self.statistics.moments.mean_squares();
        squares.iter().zip(columns).map(|(square, scale)| square / (scale * scale)).collect()
    }

    /// Q(W · s), each rounded weighted by its input, for columns' scales s `[K]`.
    pub fn rounded(&self, matrix: &Matrix, columns: &[f32]) -> Result<Vec<f32>, CompressError> {
        Ok(matrix.format.rounded(&scaled(&matrix.rows, columns), columns.len(), Some(&self.importance(columns)))?)
    }

    /// Σ over matrices of tr(ΔW · H · ΔWᵀ), ΔW = Q(W · s) / s − W, for `h` = H of x and channels' scales `[C]`.
    pub fn weight_error(&self, h: &Mat<f32>, scales: &[f32]) -> Result<f64, CompressError> {
        let columns = self.by_column(scales);
        let mut sum = 0.0;
        for matrix in self.matrices {
            sum += matrix.share * error_of(matrix, self.rounded(matrix, &columns)?, h, &columns);
        }
        Ok(sum)
    }

    /// Σ over matrices of tr(ΔW · H · ΔWᵀ) + mean of |W' · (R(x / s) − x / s)|² over the sampled inputs, R being `rounding`,
    /// for `h` = H of x, channels' scales s `[C]`, and W' ≈ W · s as `quantized` makes them, ΔW = W' / s − W.
    ///
    /// The two roundings do not know of each other, so their errors add. Taken together, on the sample alone, the first would
    /// be known from a few hundred inputs only.
    pub fn output_error(
        &self,
        h: &Mat<f32>,
        scales: &[f32],
        rounding: ActivationRounding,
        quantized: impl Fn(&Matrix, &[f32]) -> Result<Vec<f32>, CompressError>,
    ) -> Result<f64, CompressError> {
        let columns = self.by_column(scales);
        let peaks = self.statistics.peaks.iter().zip(&columns).map(|(peak, scale)| peak / scale);
        let mut exact = self.statistics.sample.clone();
        for row in exact.chunks_exact_mut(columns.len()) {
            row.iter_mut().zip(&columns).for_each(|(value, scale)| *value /= scale);
        }
        let mut x = exact.clone();
        rounding.round(&mut x, columns.len(), peaks.fold(0.0, f32::max));
        x.iter_mut().zip(&exact).for_each(|(value, exact)| *value -= exact);
        let positions = (x.len() / columns.len().max(1)).max(1) as f64;
        let mut sum = 0.0;
        for matrix in self.matrices {
            let quantized = quantized(matrix, &columns)?;
            let errors = products(&x, &quantized, columns.len());
            let square = |n: usize| -> f64 { errors.col(n).iter().map(|error| f64::from(*error).powi(2)).sum() };
            let of_activations = (0..errors.ncols()).map(square).sum::<f64>() / positions;
            sum += matrix.share * (error_of(matrix, quantized, h, &columns) + of_activations);
        }
        Ok(sum)
    }

    /// The first of `candidates` with the least error. Errors where none is finite.
    pub fn least(
        &self,
        candidates: impl IntoIterator<Item = Vec<f32>>,
        error: impl Fn(&[f32]) -> Result<f64, CompressError>,
    ) -> Result<Vec<f32>, CompressError> {
        let mut best: Option<(f64, Vec<f32>)> = None;
        for scales in candidates {
            let error = error(&scales)?;
            if error.is_finite() && best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, scales));
            }
        }
        let nothing = || CompressError::NotFinite { what: "the output error of every scaling".to_owned() };
        best.map(|(_, scales)| scales).ok_or_else(nothing)
    }
}

/// tr(ΔW · H · ΔWᵀ), ΔW = W' / s − W, for W' `[n, K]` and s `[K]`.
fn error_of(matrix: &Matrix, mut quantized: Vec<f32>, h: &Mat<f32>, columns: &[f32]) -> f64 {
    for (row, was) in quantized.chunks_mut(columns.len()).zip(matrix.rows.chunks(columns.len())) {
        row.iter_mut().zip(was).zip(columns).for_each(|((value, was), scale)| *value = *value / scale - was);
    }
    quadratic(h, &quantized)
}

/// W · s, for rows W `[n, K]` and s `[K]`.
pub(crate) fn scaled(rows: &[f32], columns: &[f32]) -> Vec<f32> {
    rows.chunks(columns.len().max(1))
        .flat_map(|row| row.iter().zip(columns).map(|(value, scale)| value * scale))
        .collect()
}

/// What a channel counts as having: at least a ten-thousandth of the largest; 1 where all are 0.
pub(crate) fn floored(mut values: Vec<f32>) -> Vec<f32> {
    let largest = values.iter().copied().fold(0.0, f32::max);
    let least = if largest > 0.0 { largest * LEAST } else { 1.0 };
    values.iter_mut().for_each(|value| *value = value.max(least));
    values
}

/// s / √(max s · min s).
pub(crate) fn normalized(mut scales: Vec<f32>) -> Vec<f32> {
    let (least, largest) = scales.iter().fold((f32::INFINITY, 0.0f32), |(a, b), &s| (a.min(s), b.max(s)));
    let middle = (least * largest).sqrt();
    scales.iter_mut().for_each(|scale| *scale /= middle);
    scales
}

/// x · Wᵀ: `[T, K]`, `[n, K]` → `[T, n]`.
fn products(x: &[f32], weights: &[f32], columns: usize) -> Mat<f32> {
    let (positions, rows) = (x.len() / columns.max(1), weights.len() / columns.max(1));
    let mut out = Mat::zeros(positions, rows);
    let x = MatRef::from_row_major_slice(x, positions, columns);
    let weights = MatRef::from_row_major_slice(weights, rows, columns);
    product_f32(out.as_mut(), false, x, weights.transpose());
    out
}
