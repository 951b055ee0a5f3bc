//! Mixed precision: which tensor deserves which format, for a given size.
//!
//! `sensitivity` measures what each format would cost per tensor, in KL divergence of the whole model; `knapsack` picks
//! one format per tensor with the least sum that fits; `target` goes from a size to formats by both.

mod knapsack;
mod sensitivity;
mod target;

pub use knapsack::{Item, Solution, allocate};
pub use sensitivity::{FormatCost, ProbeOptions, Sensitivity, measure_sensitivity};
pub use target::{ParetoFront, ParetoPoint, Target, choose_formats};

use crate::CompressError;
use edgelm_model::TensorId;
use edgelm_tensor::DType;
use std::collections::HashMap;

/// A format per matrix, and what is expected of it.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// By tensor.
    pub formats: HashMap<TensorId, DType>,
    /// Bytes of all matrices.
    pub bytes: u64,
    /// Sum of the tensors' costs: the expected divergence.
    pub expected_kl: f64,
}

/// The formats of least expected divergence whose bytes are at most `budget`. Errors if even the smallest do not fit.
pub fn allocate_formats(sensitivities: &[Sensitivity], budget: u64) -> Result<Allocation, CompressError> {
    let items: Vec<Item> = sensitivities
        .iter()
        .map(|tensor| tensor.formats.iter().map(|format| (format.bytes, format.kl)).collect())
        .collect();
    let least = items.iter().map(|item: &Item| item.iter().map(|choice| choice.0).min().unwrap_or(0)).sum();
    let solution = allocate(&items, budget).ok_or(CompressError::TargetTooSmall { budget, least })?;
    let chosen = sensitivities.iter().zip(&solution.choices).map(|(tensor, &choice)| (tensor, &tensor.formats[choice]));
    Ok(Allocation {
        formats: chosen.map(|(tensor, format)| (tensor.id, format.dtype)).collect(),
        bytes: solution.bytes,
        expected_kl: solution.cost,
    })
}
