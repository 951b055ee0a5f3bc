//! From a target size to formats: measures, allocates, and draws the front on which the choice lies.

use super::{Allocation, ProbeOptions, Sensitivity, allocate_formats, measure_sensitivity};
use crate::{CompressError, Keep, matrix_budget, matrix_budget_of_bits, quantize::vector_bytes};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use edgelm_tensor::DType;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What the mixture is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// All weights counted.
    BitsPerWeight(f64),
    /// Size of the whole file.
    FileBytes(u64),
}

/// One mixture: the least expected divergence for its size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ParetoPoint {
    /// Of all matrices.
    pub matrix_bytes: u64,
    /// All weights counted.
    pub bits_per_weight: f64,
    /// Sum over the tensors, before error feedback.
    pub expected_kl: f64,
}

/// What could be had for other sizes, and what was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParetoFront {
    /// Smallest first.
    pub points: Vec<ParetoPoint>,
    /// For the target.
    pub chosen: ParetoPoint,
}

/// Formats that can have a place in a mixture, by their bits over its mean. Of mica-40m's tensors at 3.1 to 6 bits none was
/// given one beyond 0.65 to 2.1; and encoding for trial in the low-bit formats is what takes the time.
const BITS_AROUND_MEAN: std::ops::RangeInclusive<f64> = 0.6..=2.8;

/// For rows that are not whole blocks of 256 values, and for those that are not whole blocks of anything.
const ALWAYS: [DType; 2] = [DType::IQ4_NL, DType::F16];

/// Sizes for which a front is drawn.
const POINTS: u64 = 12;

impl Target {
    /// Bytes that the matrices may have.
    fn budget(self, checkpoint: &Checkpoint) -> Result<u64, CompressError> {
        match self {
            Target::BitsPerWeight(bits) if !(bits.is_finite() && bits > 0.0) => Err(CompressError::BadTarget(bits)),
            Target::BitsPerWeight(bits) => matrix_budget_of_bits(checkpoint, bits),
            Target::FileBytes(bytes) => matrix_budget(checkpoint, bytes),
        }
    }
}

/// The mixture of formats of least expected divergence for `target`, and the front it lies on. Tensors that `keep` names have
/// no choice. `on_layer` is called with (done, total) after each layer.
pub fn choose_formats(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    keep: &[Keep],
    target: Target,
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<(Allocation, ParetoFront), CompressError> {
    let budget = target.budget(checkpoint)?;
    // Beyond the largest format there is nothing to mix.
    let mean = (budget as f64 * 8.0 / checkpoint.parameters().max(1) as f64).min(DType::Q8_0.bits_per_weight());
    let is_near = |dtype: DType| BITS_AROUND_MEAN.contains(&(dtype.bits_per_weight() / mean));
    let is_kept = |dtype: DType| keep.iter().any(|keep| keep.dtype() == dtype);
    let candidates: Vec<DType> = DType::all()
        .filter(|dtype| dtype.gguf_id().is_some())
        .filter(|&dtype| (dtype.is_quantized() && is_near(dtype)) || is_kept(dtype) || ALWAYS.contains(&dtype))
        .collect();
    let mut measured = measure_sensitivity(checkpoint, cpu, windows, &candidates, &ProbeOptions::default(), on_layer)?;
    for tensor in &mut measured {
        let name = checkpoint.config().arch.gguf_tensor_name(tensor.id);
        if let Some(keep) = keep.iter().rev().find(|keep| keep.matches(&name)) {
            tensor.formats.retain(|format| format.dtype == keep.dtype());
            if tensor.formats.is_empty() {
                let row_len = checkpoint.tensor(tensor.id)?.row_len();
                return Err(CompressError::NoCandidate { name, row_len });
            }
        } else if tensor.formats.iter().any(|format| format.dtype.is_quantized()) {
            // No mixture wants it, and the front would be drawn up to its size.
            tensor.formats.retain(|format| format.dtype.is_quantized());
        }
    }
    let allocation = allocate_formats(&measured, budget)?;
    let front = front(checkpoint, &measured, &allocation)?;
    Ok((allocation, front))
}

/// Budgets at equal distances from the smallest mixture there is to the largest.
fn front(checkpoint: &Checkpoint, measured: &[Sensitivity], chosen: &Allocation) -> Result<ParetoFront, CompressError> {
    let sizes = |tensor: &Sensitivity| tensor.formats.iter().map(|format| format.bytes).collect::<Vec<_>>();
    let least: u64 = measured.iter().filter_map(|tensor| sizes(tensor).into_iter().min()).sum();
    let most: u64 = measured.iter().filter_map(|tensor| sizes(tensor).into_iter().max()).sum();
    let vectors = vector_bytes(checkpoint)?;
    let point = |allocation: &Allocation| ParetoPoint {
        matrix_bytes: allocation.bytes,
        bits_per_weight: (allocation.bytes + vectors) as f64 * 8.0 / checkpoint.parameters().max(1) as f64,
        expected_kl: allocation.expected_kl,
    };
    let budgets = (0..POINTS).into_par_iter().map(|index| least + (most - least) * index / (POINTS - 1));
    // Sizes are rounded up to steps of the budget, so the very smallest mixture may seem not to fit its own size.
    let found: Vec<ParetoPoint> =
        budgets.filter_map(|budget| allocate_formats(measured, budget).ok()).map(|found| point(&found)).collect();
    let mut points: Vec<ParetoPoint> = Vec::new();
    for point in found {
        if points.last().is_none_or(|last| point.matrix_bytes > last.matrix_bytes) {
            points.push(point);
        }
    }
    Ok(ParetoFront { points, chosen: point(chosen) })
}
