//! Which part of the residual stream a narrower model keeps, and what reads the whole stream expressed by that part.

use super::columns::removal_order;
use crate::CompressError;
use edgelm_linalg::{Mat, MatMut, MatRef, cholesky, eigen_symmetric, product_f32, product_f64, solve_positive};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Added to the mean diagonal of what is factored to choose channels by; far below what any choice depends on.
const EPSILON: f64 = 1e-6;

/// How the narrower stream is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiddenBasis {
    /// Some of its channels.
    Channels,
    /// Its principal components (SliceGPT, arXiv:2401.15024). Unties an output head that is the embedding.
    Principal,
}

/// P `[D, d]` with orthonormal columns: the stream x becomes z = Pᵀ·x.
pub(crate) enum Basis {
    /// Rising.
    Channels(Vec<usize>),
    Principal(Mat<f32>),
}

impl Basis {
    pub fn kind(&self) -> HiddenBasis {
        match self {
            Basis::Channels(_) => HiddenBasis::Channels,
            Basis::Principal(_) => HiddenBasis::Principal,
        }
    }

    /// d.
    pub fn width(&self) -> usize {
        match self {
            Basis::Channels(kept) => kept.len(),
            Basis::Principal(p) => p.ncols(),
        }
    }

    /// x·P for rows x `[N, D]`.
    pub fn of_rows(&self, rows: &[f32], hidden_size: usize) -> Vec<f32> {
        match self {
            Basis::Channels(kept) => {
                rows.par_chunks_exact(hidden_size).flat_map_iter(|row| kept.iter().map(|&k| row[k])).collect()
            }
            Basis::Principal(p) => product(rows, hidden_size, p.as_ref()),
        }
    }

    /// Pᵀ·W for W `[D, K]`.
    pub fn of_columns(&self, values: &[f32], hidden_size: usize) -> Vec<f32> {
        let columns = values.len() / hidden_size.max(1);
        match self {
            Basis::Channels(kept) => {
                kept.iter().flat_map(|&row| &values[row * columns..][..columns]).copied().collect()
            }
            Basis::Principal(p) => {
                let mut out = vec![0.0; p.ncols() * columns];
                let view = MatMut::from_row_major_slice_mut(&mut out, p.ncols(), columns);
                product_f32(view, false, p.transpose(), MatRef::from_row_major_slice(values, hidden_size, columns));
                out
            }
        }
    }

    /// P, entry by entry.
    pub fn entry(&self, row: usize, column: usize) -> f64 {
        match self {
            Basis::Channels(kept) => f64::from(u8::from(kept[column] == row)),
            Basis::Principal(p) => f64::from(p[(row, column)]),
        }
    }
}

/// rows · matrix, for rows `[N, K]`.
pub(crate) fn product(rows: &[f32], columns: usize, matrix: MatRef<'_, f32>) -> Vec<f32> {
    let count = rows.len() / columns.max(1);
    let mut out = vec![0.0; count * matrix.ncols()];
    let view = MatMut::from_row_major_slice_mut(&mut out, count, matrix.ncols());
    product_f32(view, false, MatRef::from_row_major_slice(rows, count, columns), matrix);
    out
}

/// The `count` channels that stay when those go, one after another, whose loss what reads the rest can best make up for:
/// tr(ΔW·H·ΔWᵀ) for H = `moments` `[D, D]` of the normalized stream and Wᵀ·W = `readers` `[D, D]`.
pub(crate) fn choose_channels(moments: &Mat<f64>, readers: &Mat<f64>, count: usize) -> Result<Basis, CompressError> {
    let size = moments.nrows();
    let regular = |matrix: &Mat<f64>| {
        let extra = (0..size).map(|k| matrix[(k, k)]).sum::<f64>() / size.max(1) as f64 * EPSILON;
        Mat::from_fn(size, size, |i, j| matrix[(i, j)] + if i == j { extra } else { 0.0 })
    };
    let root = cholesky(regular(readers).as_ref()).ok_or(CompressError::SingularHessian)?;
    let mut rows = vec![0.0; size * size];
    for (n, row) in rows.chunks_exact_mut(size.max(1)).enumerate() {
        row.iter_mut().enumerate().for_each(|(k, value)| *value = root[(k, n)] as f32);
    }
    let h = regular(moments);
    let h = Mat::from_fn(size, size, |i, j| h[(i, j)] as f32);
    let mut stays = vec![true; size];
    removal_order(&rows, &h, 1, size - count)?.iter().for_each(|removal| stays[removal.group] = false);
    Ok(Basis::Channels((0..size).filter(|&k| stays[k]).collect()))
}

/// The `count` principal components of the normalized stream.
pub(crate) fn principal(moments: &Mat<f64>, count: usize) -> Result<Basis, CompressError> {
    let (_, vectors) = eigen_symmetric(moments.as_ref()).ok_or(CompressError::SingularHessian)?;
    let size = moments.nrows();
    Ok(Basis::Principal(Mat::from_fn(size, count, |k, i| vectors[(k, size - 1 - i)] as f32)))
}

/// T `[D, d]` for which x ≈ T·z in the mean: the minimum of Σ |x − T·z|² + λ·|T − c·P|², λ = `damping` times the mean of z²,
/// c the best multiple. `cross` = Σ x·zᵀ `[D, d]`, `h` = Σ z·zᵀ `[d, d]`.
///
/// Numerics: f64.
pub(crate) fn expressed(
    basis: &Basis,
    cross: &Mat<f64>,
    h: &Mat<f64>,
    damping: f32,
) -> Result<(Mat<f64>, f64), CompressError> {
    let (size, width) = (cross.nrows(), cross.ncols());
    let energy: f64 = (0..width).map(|i| h[(i, i)]).sum();
    // PᵀP = 1, so that |P·z|² = |z|².
    let with_p: f64 = (0..size).map(|k| (0..width).map(|i| basis.entry(k, i) * cross[(k, i)]).sum::<f64>()).sum();
    let scale = with_p / energy.max(f64::MIN_POSITIVE);
    let lambda = f64::from(damping) * energy / width.max(1) as f64;
    let left = Mat::from_fn(width, width, |i, j| h[(i, j)] + if i == j { lambda } else { 0.0 });
    let right = Mat::from_fn(width, size, |i, k| cross[(k, i)] + lambda * scale * basis.entry(k, i));
    let solved = solve_positive(left.as_ref(), right.as_ref()).ok_or(CompressError::SingularHessian)?;
    let is_finite = (0..size).all(|k| (0..width).all(|i| solved[(i, k)].is_finite()));
    if is_finite { Ok((solved.transpose().to_owned(), scale)) } else { Err(CompressError::SingularHessian) }
}

/// The gain g `[d]` for which E_P·diag(g)·z comes nearest to E·x in the mean, E `[V, D]` being a tied output head that keeps
/// its columns `kept`: ((E_PᵀE_P) ∘ H + λ)·g = diag(E_PᵀE·X) + λ·g₀, X = `cross` and g₀ = `before`.
pub(crate) fn tied_gain(
    head_gram: &Mat<f64>,
    kept: &[usize],
    cross: &Mat<f64>,
    h: &Mat<f64>,
    before: &[f64],
    damping: f32,
) -> Result<Vec<f32>, CompressError> {
    let width = kept.len();
    let of_kept = Mat::from_fn(width, head_gram.nrows(), |i, k| head_gram[(kept[i], k)]);
    let wanted = product_f64(of_kept.as_ref(), cross.as_ref());
    let mut left = Mat::from_fn(width, width, |i, j| of_kept[(i, kept[j])] * h[(i, j)]);
    let lambda = f64::from(damping) * (0..width).map(|i| left[(i, i)]).sum::<f64>() / width.max(1) as f64;
    (0..width).for_each(|i| left[(i, i)] += lambda);
    let right = Mat::from_fn(width, 1, |i, _| wanted[(i, i)] + lambda * before[i]);
    let solved = solve_positive(left.as_ref(), right.as_ref()).ok_or(CompressError::SingularHessian)?;
    Ok((0..width).map(|i| solved[(i, 0)] as f32).collect())
}
