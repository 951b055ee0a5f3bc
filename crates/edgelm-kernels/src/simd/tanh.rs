//! The hyperbolic tangent, for soft caps.

use super::{Lanes, exp2_negative};

/// From here on 1 - 2/(1 + e²ˣ) loses nothing; nearer to zero it would lose relative precision, which a cap of 50 magnifies.
const SMALL: f32 = 1.0;
/// Least-maximum fit of (tanh x / x - 1) / x² on |x| ≤ 1 in powers of x², weighted for the relative error of tanh x, which it
/// keeps under 5.6e-8.
const FIT: [f32; 6] = [-0.333_329_86, 0.133_264_1, -0.053_498_708, 0.020_359_756, -0.006_259_335_7, 0.001_058_263_4];

/// tanh x: an odd polynomial below 1 in magnitude, ±(1 - 2e/(1 + e)) with e = exp(-2|x|) beyond.
///
/// Numerics: absolute error at most 2e-7, relative error at most 3e-7; ±1 at ±∞, NaN at NaN. No fused operations: every
/// instruction set gives the same bits.
/// Source: coefficients fitted for this file.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let zero = L::splat(0.0);
    // The second operand is what `max` gives when x is NaN.
    let magnitude = zero.sub(x).max(x);
    let power = exp2_negative(magnitude.mul(L::splat(-2.0 * std::f32::consts::LOG2_E)));
    let large = L::splat(1.0).sub(power.add(power).div(power.add(L::splat(1.0))));
    let square = magnitude.mul(magnitude);
    let mut fit = L::splat(FIT[5]);
    for coefficient in [FIT[4], FIT[3], FIT[2], FIT[1], FIT[0]] {
        fit = fit.mul(square).add(L::splat(coefficient));
    }
    let small = fit.mul(square).mul(magnitude).add(magnitude);
    let positive = magnitude.select_less(L::splat(SMALL), small, large);
    x.select_less(zero, zero.sub(positive), positive)
}
