//! Mixed precision: which tensor deserves which format, for a given size.
//!
//! `sensitivity` measures what each format would cost per tensor, in KL divergence of the whole model; `knapsack` picks
//! one format per tensor with the least sum that fits; `target` goes from a size to formats by both, `within` from a quality
//! to the smallest size, which it finds (`search`) by making mixtures and measuring them (`divergence`).

mod divergence;
mod knapsack;
mod palette;
mod search;
mod sensitivity;
mod target;
#[cfg(test)]
mod tests;
mod within;

pub use knapsack::{Item, Solution, Table, allocate};
pub use palette::Palette;
pub use search::Trial;
pub use sensitivity::{FormatCost, ProbeOptions, Sensitivity, measure_sensitivity};
pub use target::{ParetoFront, ParetoPoint, Target, choose_formats};
pub use within::{Limit, Within, quantize_within};

use crate::{CompressError, MatrixFormat};
use edgelm_model::TensorId;
use std::collections::HashMap;

/// A format per matrix, and what is expected of it.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// By tensor.
    pub formats: HashMap<TensorId, MatrixFormat>,
    /// Bytes of all matrices.
    pub bytes: u64,
    /// Sum of the tensors' costs: the expected divergence.
    pub expected_kl: f64,
}

/// The formats of least expected divergence whose bytes are at most `budget`. Errors if even the smallest do not fit.
pub fn allocate_formats(sensitivities: &[Sensitivity], budget: u64) -> Result<Allocation, CompressError> {
    let items = items(sensitivities);
    let least = items.iter().map(|item: &Item| item.iter().map(|choice| choice.0).min().unwrap_or(0)).sum();
    let solution = allocate(&items, budget).ok_or(CompressError::TargetTooSmall { budget, least })?;
    Ok(allocation(sensitivities, &solution))
}

/// What each tensor could be stored as.
fn items(sensitivities: &[Sensitivity]) -> Vec<Item> {
    sensitivities.iter().map(|tensor| tensor.formats.iter().map(|format| (format.bytes, format.kl)).collect()).collect()
}

fn allocation(sensitivities: &[Sensitivity], solution: &Solution) -> Allocation {
    let chosen = sensitivities.iter().zip(&solution.choices).map(|(tensor, &choice)| (tensor, &tensor.formats[choice]));
    Allocation {
        formats: chosen.map(|(tensor, cost)| (tensor.id, cost.format)).collect(),
        bytes: solution.bytes,
        expected_kl: solution.cost,
    }
}
