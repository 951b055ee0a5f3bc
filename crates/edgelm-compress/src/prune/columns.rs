//! Whole input columns of a matrix taken out, and what remains adjusted: the arithmetic of structured pruning.

use crate::CompressError;
use edgelm_linalg::{Mat, MatMut, MatRef, add_product_f64, invert_positive, product_f64, solve_positive};

/// A group of columns that goes, and what the outputs lose by it after everything that went before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Removal {
    /// Number of the group.
    pub group: usize,
    /// Increase of tr(ΔW·H·ΔWᵀ).
    pub loss: f64,
}

/// The `count` groups of `width` neighbouring columns of `weights` `[N, K]` whose removal costs least, one after another,
/// the rest adjusted after each: group g costs tr(W_g·([H⁻¹]_gg)⁻¹·W_gᵀ), and then W −= W_g·M·[H⁻¹]_g,
/// H⁻¹ −= [H⁻¹]_:g·M·[H⁻¹]_g with M = ([H⁻¹]_gg)⁻¹.
///
/// Numerics: f64. Errors where H is not positive definite. Memory: K² + N·K doubles.
/// Source: optimal brain surgeon (Hassibi and Stork 1993) for sets of columns, as in ZipLM (Kurtic et al. 2023,
/// arXiv:2302.04089).
pub fn removal_order(weights: &[f32], h: &Mat<f32>, width: usize, count: usize) -> Result<Vec<Removal>, CompressError> {
    let columns = h.nrows();
    let rows = weights.len() / columns.max(1);
    let mut inverse = invert_positive(wide(h).as_ref()).ok_or(CompressError::SingularHessian)?;
    // Transposed: a column of W is contiguous, as a column of H⁻¹ is.
    let mut weights = Mat::from_fn(rows, columns, |n, k| f64::from(weights[n * columns + k]));
    let mut left: Vec<usize> = (0..columns / width.max(1)).collect();
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        let mut best: Option<(usize, Removal)> = None;
        for (place, &group) in left.iter().enumerate() {
            let loss = cost(&weights, &inverse, group * width, width)?;
            if best.is_none_or(|(_, best)| loss < best.loss) {
                best = Some((place, Removal { group, loss }));
            }
        }
        let Some((place, removal)) = best else { break };
        left.remove(place);
        order.push(removal);
        take_out(&mut weights, &mut inverse, removal.group * width, width)?;
    }
    Ok(order)
}

/// tr(W_g·([H⁻¹]_gg)⁻¹·W_gᵀ).
fn cost(weights: &Mat<f64>, inverse: &Mat<f64>, first: usize, width: usize) -> Result<f64, CompressError> {
    let of_group = weights.as_ref().subcols(first, width);
    let loss = if width == 1 {
        of_group.squared_norm_l2() / inverse[(first, first)]
    } else {
        let block = inverse.as_ref().submatrix(first, first, width, width);
        let solved = solve_positive(block, of_group.transpose()).ok_or(CompressError::SingularHessian)?;
        (0..width).map(|k| (0..weights.nrows()).map(|n| weights[(n, first + k)] * solved[(k, n)]).sum::<f64>()).sum()
    };
    if loss.is_finite() { Ok(loss) } else { Err(CompressError::SingularHessian) }
}

fn take_out(weights: &mut Mat<f64>, inverse: &mut Mat<f64>, first: usize, width: usize) -> Result<(), CompressError> {
    let block = inverse.as_ref().submatrix(first, first, width, width);
    // M·[H⁻¹]_g, `[width, K]`.
    let update = solve_positive(block, inverse.as_ref().subrows(first, width)).ok_or(CompressError::SingularHessian)?;
    for matrix in [weights, inverse] {
        let of_group = matrix.as_ref().subcols(first, width).to_owned();
        add_product_f64(matrix.as_mut(), -1.0, of_group.as_ref(), update.as_ref());
    }
    // Exact zeros off the diagonal, so that rounding cannot bring the group back; the diagonal is never read again.
    (first..first + width).for_each(|column| inverse[(column, column)] = 1.0);
    Ok(())
}

/// The weights `[N, |kept|]` of the columns `kept` that minimize tr(ΔW·H·ΔWᵀ) with all others zero:
/// H_SS·Wₛᵀ = H_S·Wᵀ, for `weights` `[N, K]`.
///
/// Numerics: f64. Errors where H is not positive definite.
pub fn compensate(weights: &[f32], h: &Mat<f32>, kept: &[usize]) -> Result<Vec<f32>, CompressError> {
    let columns = h.nrows();
    let rows = weights.len() / columns.max(1);
    let of_kept = Mat::from_fn(kept.len(), columns, |i, j| f64::from(h[(kept[i], j)]));
    let square = Mat::from_fn(kept.len(), kept.len(), |i, j| of_kept[(i, kept[j])]);
    let weights = Mat::from_fn(columns, rows, |k, n| f64::from(weights[n * columns + k]));
    let right = product_f64(of_kept.as_ref(), weights.as_ref());
    let solved = solve_positive(square.as_ref(), right.as_ref()).ok_or(CompressError::SingularHessian)?;
    finite_rows(solved.as_ref())
}

/// Columns of `x` as rows of f32.
fn finite_rows(x: MatRef<'_, f64>) -> Result<Vec<f32>, CompressError> {
    let mut out = vec![0.0; x.nrows() * x.ncols()];
    let mut view = MatMut::from_row_major_slice_mut(&mut out, x.ncols(), x.nrows());
    for n in 0..x.ncols() {
        (0..x.nrows()).for_each(|k| view[(n, k)] = x[(k, n)] as f32);
    }
    if out.iter().all(|value| value.is_finite()) { Ok(out) } else { Err(CompressError::SingularHessian) }
}

fn wide(h: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(h.nrows(), h.ncols(), |i, j| f64::from(h[(i, j)]))
}
