//! Search for scale and minimum of a block whose value is scale · q + min, q in 0..=HIGH.
//!
//! For given q the best pair solves a 2×2 system, for a given pair the best q are the nearest. A grid over both
//! ends of the range finds the valley, alternation its bottom.

use super::symmetric::{clamp, inverse, round};
use super::weights::{finite_f16, with_neighbours};
use half::f16;

/// A scale (≥ 0) and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub scale: f32,
    pub min: f32,
}

/// What one pair gives, and the sums that say how the error changes when the pair does and q stays.
/// With r = x − scale·q − min:
#[derive(Clone, Copy)]
pub(super) struct Trial {
    /// Σ w·r²
    pub error: f32,
    /// Σ w·r·q
    pub slope_scale: f32,
    /// Σ w·r
    pub slope_min: f32,
    /// Σ w·q²
    pub qq: f32,
    /// Σ w·q
    pub q: f32,
}

const LANES: usize = 8;

/// Rounds a block with one pair. N is a multiple of 8; sums run in eight lanes so that they vectorize.
#[inline(always)]
pub(super) fn trial<const N: usize>(x: &[f32; N], w: &[f32; N], high: f32, pair: Pair) -> Trial {
    let inverse = inverse(pair.scale);
    let mut sums = [[0.0f32; LANES]; 5];
    for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
        for i in 0..LANES {
            let above = x[i] - pair.min;
            let q = round(clamp(above * inverse, 0.0, high));
            let rest = above - pair.scale * q;
            let weighted = w[i] * rest;
            sums[0][i] += weighted * rest;
            sums[1][i] += weighted * q;
            sums[2][i] += weighted;
            sums[3][i] += w[i] * q * q;
            sums[4][i] += w[i] * q;
        }
    }
    let [error, slope_scale, slope_min, qq, q] = sums.map(|lanes| lanes.iter().sum::<f32>());
    Trial { error, slope_scale, slope_min, qq, q }
}

impl Trial {
    /// The pair of least error for the same q, and that error. `weight` is Σ w; `signed` allows a minimum above 0.
    fn refit(&self, pair: Pair, weight: f32, signed: bool) -> (Pair, f32) {
        let determinant = self.qq * weight - self.q * self.q;
        let (mut scale, mut min) = (0.0, 0.0);
        if determinant > 1e-7 * self.qq * weight {
            scale = (self.slope_scale * weight - self.slope_min * self.q) / determinant;
            min = (self.slope_min * self.qq - self.slope_scale * self.q) / determinant;
        } else if self.qq > 0.0 {
            scale = self.slope_scale / self.qq;
        }
        if !signed && pair.min + min > 0.0 {
            min = -pair.min;
            scale = if self.qq > 0.0 { (self.slope_scale - min * self.q) / self.qq } else { 0.0 };
        }
        let change = scale * scale * self.qq + 2.0 * scale * min * self.q + min * min * weight
            - 2.0 * (scale * self.slope_scale + min * self.slope_min);
        (Pair { scale: pair.scale + scale, min: pair.min + min }, self.error + change)
    }
}

/// How far the ends of the range are moved inwards, in steps.
const INSETS: [f32; 7] = [-0.3, -0.1, 0.1, 0.3, 0.5, 0.7, 1.0];

/// The best pair. Without `signed` the minimum is at most 0.
pub(super) fn search<const N: usize>(x: &[f32; N], w: &[f32; N], high: f32, signed: bool) -> Pair {
    let start = if signed { (x[0], x[0]) } else { (0.0, x[0]) };
    let (low_end, high_end) = x.iter().fold(start, |(low, high), &value| (low.min(value), high.max(value)));
    if high_end <= low_end {
        return Pair { scale: 0.0, min: low_end };
    }
    let weight: f32 = w.iter().sum();
    let step = (high_end - low_end) / high;
    // The plain range is the one with a bound on every single error.
    let plain = Pair { scale: step, min: low_end };
    let mut best = (trial(x, w, high, plain).error, plain);
    for from_low in INSETS {
        let min = low_end + from_low * step;
        if !signed && min > 0.0 {
            continue;
        }
        for from_high in INSETS {
            let scale = (high_end - from_high * step - min) / high;
            let pair = Pair { scale, min };
            let (pair, error) = trial(x, w, high, pair).refit(pair, weight, signed);
            if error < best.0 && pair.scale > 0.0 {
                best = (error, pair);
            }
        }
    }
    for _ in 0..4 {
        let (pair, error) = trial(x, w, high, best.1).refit(best.1, weight, signed);
        if error >= best.0 || pair.scale <= 0.0 {
            break;
        }
        best = (error, pair);
    }
    best.1
}

/// The best pair that two f16 hold, for a value scale · q + min with a minimum of either sign.
pub(super) fn search_f16<const N: usize>(x: &[f32; N], w: &[f32; N], high: f32) -> (f16, f16) {
    let weight: f32 = w.iter().sum();
    let wish = search(x, w, high, true);
    let mut centre = (finite_f16(wish.scale), finite_f16(wish.min));
    let mut best = (f32::INFINITY, centre);
    for _ in 0..3 {
        let mut next = centre;
        for scale in with_neighbours(centre.0) {
            for min in with_neighbours(centre.1) {
                let pair = Pair { scale: scale.to_f32(), min: min.to_f32() };
                let trial = trial(x, w, high, pair);
                if trial.error < best.0 {
                    best = (trial.error, (scale, min));
                    let (pair, _) = trial.refit(pair, weight, true);
                    next = (finite_f16(pair.scale), finite_f16(pair.min));
                }
            }
        }
        if next == centre {
            break;
        }
        centre = next;
    }
    best.1
}
