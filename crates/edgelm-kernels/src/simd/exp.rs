//! The exponentials of every kernel here: softmax, activations, log-sum-exp.

use super::Lanes;

/// Above it eˣ overflows.
const LARGEST: f32 = 88.722_83;
/// Below it the result is flushed to zero: just above -125 · ln 2, where eʳ · 2ⁿ⁻¹ would leave the normal numbers.
const SMALLEST: f32 = -86.64;
/// ln 2 in two parts; n · LN_2_HIGH is exact for |n| ≤ 2¹⁵.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Least-maximum fit of (eʳ - 1 - r) / r² on |r| ≤ ln 2 / 2, weighted for the relative error of eʳ, which it keeps under
/// 4.4e-9 with the coefficients rounded to f32.
const FIT: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_7];

/// eˣ = 2ⁿ · eʳ with n = round(x / ln 2), r = x - n ln 2.
///
/// Numerics: within 1 ULP of the exact value for x in -86.64..=88.72, exactly 1 at 0, exactly 0 below -86.64 (and at
/// -∞), +∞ above 88.73, NaN at NaN.
/// Source: argument reduction after Cody and Waite 1980; coefficients fitted for this file.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    // Constants go first: `min` and `max` give their second operand when one is NaN.
    let inside = L::splat(SMALLEST).max(L::splat(LARGEST + 1.0).min(x));
    let n = inside.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(L::splat(-LN_2_HIGH), inside);
    let r = n.mul_add(L::splat(-LN_2_LOW), r);
    let mut fit = L::splat(FIT[4]);
    for coefficient in [FIT[3], FIT[2], FIT[1], FIT[0]] {
        fit = fit.mul_add(r, L::splat(coefficient));
    }
    let power = fit.mul_add(r.mul(r), r).add(L::splat(1.0));
    // n reaches 128, whose power of two is not an f32. n - 1 is at least -126, and 128 (infinity) only on overflow.
    let half = power.mul(n.sub(L::splat(1.0)).exp2_integer());
    let result = half.add(half);
    x.select_less(L::splat(SMALLEST), L::splat(0.0), result)
}

/// Least-maximum fit of (2ᶠ - 1) / f on |f| ≤ 1/2, weighted for the relative error of 2ᶠ.
const FIT_2: [f32; 5] = [0.693_142_83, 0.240_223_51, 0.055_574_004, 0.009_666_283, 0.001_112_550_7];
/// 2^-125 · 2^-½ is the smallest result; below 2^-126 numbers lose bits.
const SMALLEST_2: f32 = -125.0;

/// 2ˣ = 2ⁿ · 2ᶠ with n = round(x), f = x - n, for x ≤ 0.
///
/// Numerics: relative error at most 7e-7, exactly 1 at 0, 2^-125 below -125 (and at -∞), NaN at NaN. No fused operations:
/// every instruction set gives the same bits.
#[inline(always)]
pub(crate) fn exp2_negative<L: Lanes>(x: L) -> L {
    // The constant goes first: `max` gives its second operand when one is NaN.
    let inside = L::splat(SMALLEST_2).max(x);
    let n = inside.round();
    let f = inside.sub(n);
    let mut fit = L::splat(FIT_2[4]);
    for coefficient in [FIT_2[3], FIT_2[2], FIT_2[1], FIT_2[0]] {
        fit = fit.mul(f).add(L::splat(coefficient));
    }
    fit.mul(f).add(L::splat(1.0)).scale_by_power(n)
}
