//! Dense linear algebra for the passes: products, Cholesky factors and what is solved with them.
//!
//! Separate because these are the concrete functions of a generic library: every crate that calls the generic ones compiles
//! its own copies, which took five CPU-minutes in `edgelm-compress`, once for the library and once for its tests. Must not
//! know what a model is.
//!
//! All functions use the threads of the surrounding `rayon` pool; their results do not depend on the number.

use faer::{
    Accum, Par, Side,
    linalg::{
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        solvers::DenseSolveCore,
    },
    prelude::Solve,
};
pub use faer::{Mat, MatMut, MatRef};

/// out = a · b, or out += a · b.
pub fn product_f32(out: MatMut<'_, f32>, is_sum: bool, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    matmul(out, if is_sum { Accum::Add } else { Accum::Replace }, a, b, 1.0, Par::rayon(0));
}

/// a · b.
pub fn product_f64(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::rayon(0));
    out
}

/// out += factor · a · b.
pub fn add_product_f64(out: MatMut<'_, f64>, factor: f64, a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    matmul(out, Accum::Add, a, b, factor, Par::rayon(0));
}

/// sum += xᵀ · x, for `x` `[T, K]`; only the lower triangle of `sum` `[K, K]` is read and written.
pub fn add_gram(sum: MatMut<'_, f32>, x: MatRef<'_, f32>) {
    triangular::matmul(
        sum,
        BlockStructure::TriangularLower,
        Accum::Add,
        x.transpose(),
        BlockStructure::Rectangular,
        x,
        BlockStructure::Rectangular,
        1.0,
        Par::rayon(0),
    );
}

/// L, lower triangular, with h = L · Lᵀ. `None` where h is not positive definite.
pub fn cholesky(h: MatRef<'_, f64>) -> Option<Mat<f64>> {
    h.llt(Side::Lower).ok().map(|factor| factor.L().to_owned())
}

/// x with h · x = b. `None` where h is not positive definite.
pub fn solve_positive(h: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Option<Mat<f64>> {
    h.llt(Side::Lower).ok().map(|factor| factor.solve(b))
}

/// The same in f32, for h that are far from singular.
pub fn solve_positive_f32(h: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Option<Mat<f32>> {
    h.llt(Side::Lower).ok().map(|factor| factor.solve(b))
}

/// h⁻¹. `None` where h is not positive definite.
pub fn invert_positive(h: MatRef<'_, f64>) -> Option<Mat<f64>> {
    h.llt(Side::Lower).ok().map(|factor| factor.inverse())
}

/// Eigenvalues λ in rising order and eigenvectors as columns of U: h = U · diag(λ) · Uᵀ. `None` if it does not converge.
pub fn eigen_symmetric(h: MatRef<'_, f64>) -> Option<(Vec<f64>, Mat<f64>)> {
    let eigen = h.self_adjoint_eigen(Side::Lower).ok()?;
    Some((eigen.S().column_vector().iter().copied().collect(), eigen.U().to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn positive(n: usize) -> Mat<f64> {
        let a = Mat::from_fn(n, n, |i, j| ((i * 7 + j * 3) % 11) as f64 / 11.0 - 0.4);
        let mut h = product_f64(a.as_ref(), a.transpose());
        (0..n).for_each(|i| h[(i, i)] += 1.0);
        h
    }

    fn assert_close(a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
        for j in 0..a.ncols() {
            for i in 0..a.nrows() {
                assert!((a[(i, j)] - b[(i, j)]).abs() < 1e-9, "({i}, {j}): {} {}", a[(i, j)], b[(i, j)]);
            }
        }
    }

    #[test]
    fn factors_give_the_matrix_back() {
        let h = positive(37);
        let lower = cholesky(h.as_ref()).unwrap();
        assert_close(product_f64(lower.as_ref(), lower.transpose()).as_ref(), h.as_ref());
        let unit = Mat::from_fn(37, 37, |i, j| f64::from(u8::from(i == j)));
        let inverse = invert_positive(h.as_ref()).unwrap();
        assert_close(product_f64(h.as_ref(), inverse.as_ref()).as_ref(), unit.as_ref());
        let solved = solve_positive(h.as_ref(), unit.as_ref()).unwrap();
        assert_close(solved.as_ref(), inverse.as_ref());
        let narrow = |a: &Mat<f64>| Mat::from_fn(37, 37, |i, j| a[(i, j)] as f32);
        let solved = solve_positive_f32(narrow(&h).as_ref(), narrow(&unit).as_ref()).unwrap();
        let apart = |(i, j)| (f64::from(solved[(i, j)]) - inverse[(i, j)]).abs();
        assert!((0..37).flat_map(|i| (0..37).map(move |j| (i, j))).map(apart).all(|apart| apart < 1e-4));
        let (values, vectors) = eigen_symmetric(h.as_ref()).unwrap();
        assert!(values.is_sorted() && values[0] >= 1.0 - 1e-9);
        let scaled = Mat::from_fn(37, 37, |i, j| vectors[(i, j)] * values[j]);
        assert_close(product_f64(scaled.as_ref(), vectors.transpose()).as_ref(), h.as_ref());
    }

    #[test]
    fn what_is_not_positive_definite_is_none() {
        let mut h = positive(5);
        h[(2, 2)] = -1.0;
        assert!(cholesky(h.as_ref()).is_none() && invert_positive(h.as_ref()).is_none());
        assert!(solve_positive(h.as_ref(), h.as_ref()).is_none());
        let narrow = Mat::from_fn(5, 5, |i, j| h[(i, j)] as f32);
        assert!(solve_positive_f32(narrow.as_ref(), narrow.as_ref()).is_none());
    }

    #[test]
    fn the_gram_matrix_grows_in_its_lower_triangle() {
        let x = Mat::from_fn(4, 3, |i, j| (i * 3 + j) as f32);
        let mut sum = Mat::zeros(3, 3);
        add_gram(sum.as_mut(), x.as_ref());
        add_gram(sum.as_mut(), x.as_ref());
        let mut full = Mat::zeros(3, 3);
        product_f32(full.as_mut(), false, x.transpose(), x.as_ref());
        product_f32(full.as_mut(), true, x.transpose(), x.as_ref());
        for j in 0..3 {
            assert!((j..3).all(|i| sum[(i, j)] == full[(i, j)]));
            assert!((0..j).all(|i| sum[(i, j)] == 0.0));
        }
    }
}
