//! The best values for the weights that stay.

use edgelm_linalg::{Mat, MatMut, MatRef, product_f32};
use rayon::prelude::*;

/// Part of the first gradient's norm at which a row is done: below the step of BF16, in which weights are mostly stored.
const TOLERANCE: f64 = 1e-3;

/// Moves the weights `pruned` `[N, K]` where `kept` to those that minimize Σ_n (w_n − p_n)·H·(w_n − p_n)ᵀ with zeros
/// elsewhere: H_SS·p_S = (H·w)_S in every row, by conjugate gradients preconditioned with the diagonal of H, all rows at a
/// time (two products of `[N, K]` and `[K, K]` at the begin, one per step). `h` is positive definite.
///
/// Numerics: products in f32, scalars in f64; stops after `steps` or when all rows have converged to a thousandth.
/// Source: as in ALPS (Meng et al. 2024, arXiv:2406.07831), section 3.3.
pub fn refit(weights: &[f32], pruned: &mut [f32], kept: &[bool], h: &Mat<f32>, steps: usize) {
    let columns = h.nrows();
    let count = weights.len() / columns.max(1);
    let times_h = |x: &[f32], out: &mut [f32]| {
        let x = MatRef::from_row_major_slice(x, count, columns);
        product_f32(MatMut::from_row_major_slice_mut(out, count, columns), false, x, h.as_ref());
    };
    let inverse_diagonal: Vec<f32> = (0..columns).map(|k| 1.0 / h[(k, k)]).collect();
    let missing: Vec<f32> = weights.iter().zip(&*pruned).map(|(w, p)| w - p).collect();
    let mut residual = vec![0.0; weights.len()];
    times_h(&missing, &mut residual);
    residual.iter_mut().zip(kept).filter(|(_, kept)| !**kept).for_each(|(r, _)| *r = 0.0);
    let preconditioned =
        |residual: &[f32]| -> Vec<f32> { residual.iter().zip(&inverse_diagonal).map(|(r, d)| r * d).collect() };
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let mut direction: Vec<f32> = residual.par_chunks(columns).flat_map_iter(preconditioned).collect();
    let mut energies: Vec<f64> =
        residual.par_chunks(columns).zip(direction.par_chunks(columns)).map(|(r, z)| dot(r, z)).collect();
    let first = energies.clone();
    let is_done = |now: f64, first: f64| now <= first * TOLERANCE * TOLERANCE;
    let mut image = vec![0.0; weights.len()];
    for _ in 0..steps {
        if energies.iter().zip(&first).all(|(&now, &first)| is_done(now, first)) {
            break;
        }
        times_h(&direction, &mut image);
        let rows = pruned
            .par_chunks_mut(columns)
            .zip(residual.par_chunks_mut(columns))
            .zip(direction.par_chunks_mut(columns))
            .zip(image.par_chunks(columns))
            .zip(kept.par_chunks(columns))
            .zip(energies.par_iter_mut())
            .zip(first.par_iter());
        rows.for_each(|((((((pruned, residual), direction), image), kept), energy), &first)| {
            if is_done(*energy, first) {
                direction.fill(0.0);
                return;
            }
            // Directions are zero outside the kept weights, so their product with the image is that of H_SS.
            let step = (*energy / dot(direction, image)) as f32;
            if !step.is_finite() {
                *energy = 0.0;
                return;
            }
            for k in 0..columns {
                pruned[k] += step * direction[k];
                if kept[k] {
                    residual[k] -= step * image[k];
                }
            }
            let next = preconditioned(residual);
            let now = dot(residual, &next);
            let turn = (now / *energy) as f32;
            *energy = now;
            direction.iter_mut().zip(next).for_each(|(d, z)| *d = z + turn * *d);
        });
    }
}
