//! The normal distribution's tail, for GELU.

use super::{Lanes, exp};

/// Of the polynomial's variable, 1 / (1 + SLOPE · a).
const SLOPE: f32 = 0.3;
/// Least-maximum fit of Φ(-a) · exp(a²/2) on a ≥ 0 in powers of that variable, from the first on: relative error 1.2e-7.
const FIT: [f32; 8] =
    [0.119_624_54, 0.120_826_31, 0.099_465_08, 0.130_032_55, -0.056_449_95, 0.209_346_22, -0.158_933_62, 0.036_088_813];

/// Φ(-a) = erfc(a / √2) / 2 for a ≥ 0: what the standard normal distribution has beyond a.
///
/// Numerics: absolute error at most 3e-7 (6e-7 as an error of erf); relative error at most 1e-6 up to a = 5 and 5e-6 up to
/// a = 13, where results are flushed to 0. NaN at NaN.
/// Source: the form of Abramowitz and Stegun 1964, 7.1.26; coefficients fitted for this file.
#[inline(always)]
pub(crate) fn normal_tail<L: Lanes>(a: L) -> L {
    let t = L::splat(1.0).div(a.mul_add(L::splat(SLOPE), L::splat(1.0)));
    let mut fit = L::splat(FIT[7]);
    for coefficient in [FIT[6], FIT[5], FIT[4], FIT[3], FIT[2], FIT[1], FIT[0]] {
        fit = fit.mul_add(t, L::splat(coefficient));
    }
    fit.mul(t).mul(exp(a.mul(a).mul(L::splat(-0.5))))
}
