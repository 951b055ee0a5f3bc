//! SmoothQuant: what makes activations hard to round is moved into the weights. Pure.

use super::problem::{Problem, floored, normalized};
use crate::CompressError;
use rayon::prelude::*;

/// Exponents between 0 and 1.
const STEPS: u8 = 20;

/// How a product rounds its activations to int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationRounding {
    /// A scale for each row and each so many columns, from what they hold.
    Groups(usize),
    /// One scale for all rows and columns, from the calibration data.
    Tensor,
}

impl ActivationRounding {
    /// What this engine's products do.
    pub const ENGINE: Self = Self::Groups(128);

    /// x → scale · round(x / scale), scale = max |x| / 127, for `x` `[T, K]`. `peak`: the largest magnitude of the whole
    /// calibration data. Ties go to even; beyond the peak, values are cut off.
    pub(crate) fn round(self, x: &mut [f32], columns: usize, peak: f32) {
        x.par_chunks_mut(columns.max(1)).for_each(|row| match self {
            Self::Groups(width) => row.chunks_mut(width.max(1)).for_each(|group| {
                let peak = group.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
                round(group, peak);
            }),
            Self::Tensor => round(row, peak),
        });
    }
}

fn round(x: &mut [f32], peak: f32) {
    if peak > 0.0 {
        let scale = peak / 127.0;
        x.iter_mut().for_each(|value| *value = (*value / scale).round_ties_even().clamp(-127.0, 127.0) * scale);
    }
}

/// s = p^α / w^(1−α), normalized, for peaks p of the inputs and w of the weights of each channel; weights are multiplied by
/// s, inputs divided.
///
/// Source: Xiao et al. 2022, arXiv:2211.10438, equation 4.
pub(crate) fn scales(inputs: &[f32], weights: &[f32], exponent: f32) -> Vec<f32> {
    let (inputs, weights) = (floored(inputs.to_vec()), floored(weights.to_vec()));
    let scale = |(input, weight): (&f32, &f32)| input.powf(exponent) / weight.powf(1.0 - exponent);
    normalized(inputs.iter().zip(&weights).map(scale).collect())
}

/// The scales `[C]` (none, or those of α = 0, 0.05 … 1) with the least error of the outputs for the sampled inputs, with
/// weights rounded in their format and activations rounded too.
pub(crate) fn search(problem: &Problem<'_>, rounding: ActivationRounding) -> Result<Vec<f32>, CompressError> {
    let inputs = problem.channel_peaks(&problem.statistics.peaks);
    let weights = problem.channel_peaks(&problem.weight_peaks());
    let candidates = (0..=STEPS).map(|step| scales(&inputs, &weights, f32::from(step) / f32::from(STEPS)));
    let h = problem.statistics.moments.full()?;
    problem.least(std::iter::once(problem.ones()).chain(candidates), |scales| {
        problem.output_error(&h, scales, rounding, |matrix, columns| problem.rounded(matrix, columns))
    })
}
