//! Zeros chosen for all columns at once, by splitting the problem into an easy half and a discrete half.

use super::pattern::{Scope, Sparsity};
use crate::CompressError;
use edgelm_linalg::{Mat, MatMut, MatRef, eigen_symmetric, product_f32};
use rayon::prelude::*;

/// Strength of the tie between the two halves at the begin, in units of H's diagonal, which is 1 here.
const FIRST_TIE: f32 = 0.1;

/// Rounds between two looks at how much the mask still moves.
const ROUNDS_PER_LOOK: usize = 3;

/// Weights `[N, K]` with zeros, minimizing Σ_n (w_n − d_n)·H·(w_n − d_n)ᵀ by the alternating direction method of
/// multipliers: p = (w·H − v + ρ·d)·(H + ρ)⁻¹, d = the largest of p + v/ρ that the pattern allows, v += ρ·(p − d), with ρ
/// rising the faster the more the mask still moves, until it stands still. H is diagonalized once, so that each round
/// costs two products. Columns are scaled such that H has ones on its diagonal: "largest" then means the activation-weighted
/// magnitude. `start` is the first d.
///
/// Numerics: f32. The values that stay want a refit afterwards.
/// Source: ALPS (Meng et al. 2024, arXiv:2406.07831), algorithm 1 and its schedule of ρ.
pub fn alps(
    weights: &[f32],
    start: &[f32],
    h: &Mat<f32>,
    sparsity: &Sparsity,
    rounds: usize,
) -> Result<Vec<f32>, CompressError> {
    let columns = h.nrows();
    let count = weights.len() / columns.max(1);
    let scale: Vec<f32> = (0..columns).map(|k| h[(k, k)].sqrt()).collect();
    let unit = Mat::from_fn(columns, columns, |i, j| h[(i, j)] / (scale[i] * scale[j]));
    let wide = Mat::from_fn(columns, columns, |i, j| f64::from(unit[(i, j)]));
    let (values, vectors) = eigen_symmetric(wide.as_ref()).ok_or(CompressError::SingularHessian)?;
    let vectors = Mat::from_fn(columns, columns, |i, j| vectors[(i, j)] as f32);
    let values: Vec<f32> = values.into_iter().map(|value| value.max(0.0) as f32).collect();
    let scaled = |values: &[f32]| -> Vec<f32> {
        values.par_chunks(columns).flat_map_iter(|row| row.iter().zip(&scale).map(|(w, s)| w * s)).collect()
    };
    let product = |x: &[f32], by: MatRef<'_, f32>, out: &mut [f32]| {
        let x = MatRef::from_row_major_slice(x, count, columns);
        product_f32(MatMut::from_row_major_slice_mut(out, count, columns), false, x, by);
    };
    let mut wanted = vec![0.0; weights.len()];
    product(&scaled(weights), unit.as_ref(), &mut wanted);
    let mut sparse = scaled(start);
    let mut dual = vec![0.0f32; weights.len()];
    let mut free = vec![0.0; weights.len()];
    let mut turned = vec![0.0; weights.len()];
    let mut mask: Vec<bool> = sparse.iter().map(|value| *value != 0.0).collect();
    let mut seen = mask.clone();
    let mut tie = FIRST_TIE;
    for round in 1..=rounds {
        let right = free.par_iter_mut().zip(&wanted).zip(&dual).zip(&sparse);
        right.for_each(|(((out, wanted), dual), sparse)| *out = wanted - dual + tie * sparse);
        product(&free, vectors.as_ref(), &mut turned);
        turned.par_chunks_mut(columns).for_each(|row| {
            row.iter_mut().zip(&values).for_each(|(x, value)| *x /= value + tie);
        });
        product(&turned, vectors.transpose(), &mut free);
        let candidates: Vec<f32> = free.par_iter().zip(&dual).map(|(free, dual)| free + dual / tie).collect();
        let scores: Vec<f32> = candidates.par_iter().map(|value| value * value).collect();
        mask = sparsity.mask(&scores, columns, Scope::Matrix);
        let all = sparse.par_iter_mut().zip(&mut dual).zip(&free).zip(&candidates).zip(&mask);
        all.for_each(|((((sparse, dual), free), candidate), kept)| {
            *sparse = if *kept { *candidate } else { 0.0 };
            *dual += tie * (free - *sparse);
        });
        if round % ROUNDS_PER_LOOK == 0 {
            let moved = mask.iter().zip(&seen).filter(|(now, then)| now != then).count() as f64;
            let kept = mask.iter().filter(|kept| **kept).count() as f64;
            if moved == 0.0 {
                break;
            }
            tie *= if moved >= 0.1 * kept {
                1.3
            } else if moved >= 0.005 * kept {
                1.2
            } else {
                1.1
            };
            seen.clone_from(&mask);
        }
    }
    let unscaled = sparse.par_chunks(columns).flat_map_iter(|row| row.iter().zip(&scale).map(|(d, s)| d / s));
    let mut pruned: Vec<f32> = unscaled.collect();
    pruned.iter_mut().zip(&mask).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
    if pruned.iter().all(|value| value.is_finite()) { Ok(pruned) } else { Err(CompressError::SingularHessian) }
}
