//! From a target size to formats: measures, allocates, and draws the front on which the choice lies.

use super::{Allocation, Palette, ProbeOptions, Sensitivity, allocate_formats, measure_sensitivity};
use crate::{CompressError, Keep, MatrixFormat};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, TensorId};
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

/// Sizes for which a front is drawn.
const POINTS: u64 = 12;

impl Target {
    /// Bytes that the matrices may have.
    fn budget(self, checkpoint: &Checkpoint, palette: Palette) -> Result<u64, CompressError> {
        let (bytes, others) = match self {
            Target::BitsPerWeight(bits) if !(bits.is_finite() && bits > 0.0) => {
                return Err(CompressError::BadTarget(bits));
            }
            Target::BitsPerWeight(bits) => ((bits * checkpoint.parameters() as f64 / 8.0).floor() as u64, 0),
            Target::FileBytes(bytes) => (bytes, palette.header_bytes(checkpoint)?),
        };
        Ok(bytes.saturating_sub(others + palette.vector_bytes(checkpoint)?))
    }
}

/// The mixture of formats of `palette` of least expected divergence for `target`, and the front it lies on. Tensors that `keep`
/// names have no choice. `on_layer` is called with (done, total) after each layer.
pub fn choose_formats(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    keep: &[Keep],
    (target, palette): (Target, Palette),
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<(Allocation, ParetoFront), CompressError> {
    let budget = target.budget(checkpoint, palette)?;
    let mean = budget as f64 * 8.0 / checkpoint.parameters().max(1) as f64;
    let candidates = palette.around(mean);
    let options = ProbeOptions::default();
    let measured = measure(checkpoint, cpu, windows, keep, (palette, &candidates), &options, on_layer)?;
    let allocation = allocate_formats(&measured, budget)?;
    let front = front(checkpoint, palette, &measured, &allocation)?;
    Ok((allocation, front))
}

/// What each tensor may become, and at what cost: only the kept format where there is one, and in GGUF files no floats where
/// there is anything else.
pub(super) fn measure(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    keep: &[Keep],
    (palette, candidates): (Palette, &[MatrixFormat]),
    options: &ProbeOptions,
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<Vec<Sensitivity>, CompressError> {
    let kept = |id: TensorId| {
        let name = checkpoint.config().arch.gguf_tensor_name(id);
        keep.iter().rev().find(|keep| keep.matches(&name)).map(|keep| MatrixFormat::Block(keep.dtype()))
    };
    let choices = |id| kept(id).map_or_else(|| candidates.to_vec(), |kept| vec![kept]);
    let mut measured = measure_sensitivity(checkpoint, cpu, windows, &choices, options, on_layer)?;
    if palette == Palette::Blocks {
        for tensor in measured.iter_mut().filter(|tensor| kept(tensor.id).is_none()) {
            if tensor.formats.iter().any(|cost| cost.format.is_quantized()) {
                // No mixture wants floats, and the front would be drawn up to their size.
                tensor.formats.retain(|cost| cost.format.is_quantized());
            }
        }
    }
    Ok(measured)
}

/// Budgets at equal distances from the smallest mixture there is to the largest.
pub(super) fn front(
    checkpoint: &Checkpoint,
    palette: Palette,
    measured: &[Sensitivity],
    chosen: &Allocation,
) -> Result<ParetoFront, CompressError> {
    let sizes = |tensor: &Sensitivity| tensor.formats.iter().map(|format| format.bytes).collect::<Vec<_>>();
    let least: u64 = measured.iter().filter_map(|tensor| sizes(tensor).into_iter().min()).sum();
    let most: u64 = measured.iter().filter_map(|tensor| sizes(tensor).into_iter().max()).sum();
    let vectors = palette.vector_bytes(checkpoint)?;
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
