//! AWQ: channels with large inputs get finer steps. Pure.

use super::problem::{Problem, floored, normalized};
use crate::CompressError;

/// Exponents between 0 and 1.
const STEPS: u8 = 20;

/// s = m^α / √(max m^α · min m^α), for mean magnitudes m of the inputs of each channel.
///
/// Source: Lin et al. 2023, arXiv:2306.00978, §3.2; the normalization is their program's.
pub(crate) fn scales(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    normalized(floored(magnitudes.to_vec()).iter().map(|magnitude| magnitude.powf(exponent)).collect())
}

/// The scales `[C]` of α = 0 (none), 0.05 … 1 with the least tr(ΔW · H · ΔWᵀ), the weights being rounded in their format.
pub(crate) fn search(problem: &Problem<'_>) -> Result<Vec<f32>, CompressError> {
    let h = problem.statistics.moments.full()?;
    let magnitudes = problem.channel_means(&problem.statistics.mean_magnitudes());
    let candidates = (1..=STEPS).map(|step| scales(&magnitudes, f32::from(step) / f32::from(STEPS)));
    problem.least(std::iter::once(problem.ones()).chain(candidates), |scales| problem.weight_error(&h, scales))
}
