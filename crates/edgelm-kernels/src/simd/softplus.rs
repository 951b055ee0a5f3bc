//! The softplus function, for the time steps of state space models.

use super::{Lanes, exp};

/// Least-maximum fit of (atanh z / z - 1) / z² on |z| ≤ 1/3 in powers of z²; it keeps the relative error of atanh z under
/// 4.5e-9.
const FIT: [f32; 4] = [0.333_332_1, 0.200_107_63, 0.140_009_02, 0.140_059_96];

/// ln(1 + eˣ) = max(x, 0) + ln(1 + u) with u = exp(-|x|); ln(1 + u) = 2 atanh z with z = u / (2 + u) ≤ 1/3.
///
/// Numerics: relative error at most 3e-7 for x above -86.64, 0 below; +∞ at +∞, NaN at NaN. Scalar differs from the vector
/// paths by fused multiply-add.
/// Source: coefficients fitted for this file.
#[inline(always)]
pub(crate) fn softplus<L: Lanes>(x: L) -> L {
    let zero = L::splat(0.0);
    // The second operand is what `max` gives when x is NaN.
    let u = exp(zero.sub(zero.sub(x).max(x)));
    let z = u.div(u.add(L::splat(2.0)));
    let square = z.mul(z);
    let mut fit = L::splat(FIT[3]);
    for coefficient in [FIT[2], FIT[1], FIT[0]] {
        fit = fit.mul_add(square, L::splat(coefficient));
    }
    let double = z.add(z);
    let logarithm = fit.mul(square).mul_add(double, double);
    zero.max(x).add(logarithm)
}
