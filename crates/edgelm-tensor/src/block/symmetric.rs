//! Search for the scale of a block whose value is scale · level.
//!
//! For given levels the best scale has a closed form, for a given scale the best levels are the nearest ones;
//! what remains is a function of one number with many local minima. So: try a grid of scales, each moved to its
//! closed form, then alternate the two steps from the best.

use super::weights::{finite_f16, with_neighbours};
use half::f16;

/// The numbers a format multiplies its scale by.
pub(super) trait Levels: Copy {
    /// Least level.
    const LOW: f32;
    /// Greatest level.
    const HIGH: f32;
    /// Distance of neighbouring levels at the ends.
    const STEP: f32;
    /// Scales to try map the value of the largest magnitude to LOW and HIGH, each moved outwards by these many
    /// steps: (first, last, increment).
    const GRID: (f32, f32, f32);

    /// The level nearest to `t`, which is finite.
    fn nearest(self, t: f32) -> f32;

    /// The index of the level nearest to `t`.
    fn code(self, t: f32) -> u8;
}

/// All integers from LOW to HIGH.
#[derive(Clone, Copy)]
pub(super) struct Integers<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Integers<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    const STEP: f32 = 1.0;
    const GRID: (f32, f32, f32) = if HIGH > 100 { (-8.0, 1.0, 0.25) } else { (-1.0, 1.0, 0.1) };

    fn nearest(self, t: f32) -> f32 {
        round(clamp(t, Self::LOW, Self::HIGH))
    }

    fn code(self, t: f32) -> u8 {
        (self.nearest(t) - Self::LOW) as u8
    }
}

/// Comparisons rather than `f32::clamp`: they become two instructions for four values.
pub(super) fn clamp(t: f32, low: f32, high: f32) -> f32 {
    let t = if t > low { t } else { low };
    if t < high { t } else { high }
}

/// Rounds to nearest, ties to even, for |t| < 2²²: adding 1.5·2²³ leaves no bits for a fraction.
/// The baseline instruction set of x86-64 has no vector rounding, which makes this several times faster.
pub(super) fn round(t: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (t + SHIFT) - SHIFT
}

/// 1 / scale, and 0 for 0 (every value then gets the level nearest to zero).
pub(super) fn inverse(scale: f32) -> f32 {
    if scale.abs() < 1e-30 { 0.0 } else { 1.0 / scale }
}

/// What one scale gives, and how the error changes when the scale does and the levels stay.
#[derive(Clone, Copy)]
pub(super) struct Trial {
    /// Σ w·(x − scale·q)²
    pub error: f32,
    /// Σ w·(x − scale·q)·q
    pub slope: f32,
    /// Σ w·q²
    pub power: f32,
}

impl Trial {
    /// How far the scale of least error for these levels is away, and the error there.
    pub fn refit(&self) -> (f32, f32) {
        if self.power > 0.0 {
            let step = self.slope / self.power;
            (step, self.error - step * self.slope)
        } else {
            (0.0, self.error)
        }
    }
}

const LANES: usize = 8;

/// Rounds a block with one scale. N is a multiple of 8; sums run in eight lanes so that they vectorize.
#[inline(always)]
pub(super) fn trial<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N], scale: f32) -> Trial {
    let inverse = inverse(scale);
    let (mut error, mut slope, mut power) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
        for i in 0..LANES {
            let q = levels.nearest(x[i] * inverse);
            let rest = x[i] - scale * q;
            let weighted = w[i] * rest;
            error[i] += weighted * rest;
            slope[i] += weighted * q;
            power[i] += w[i] * q * q;
        }
    }
    Trial { error: error.iter().sum(), slope: slope.iter().sum(), power: power.iter().sum() }
}

/// The best scale of each sign, positive first. Zero where a block is zero.
pub(super) fn search<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N]) -> [f32; 2] {
    let peak = x.iter().fold(0.0f32, |peak, value| if value.abs() > peak.abs() { *value } else { peak });
    if peak == 0.0 {
        return [0.0; 2];
    }
    let mut best = [(f32::INFINITY, 0.0f32); 2];
    let mut consider = |scale: f32| {
        let trial = trial(levels, x, w, scale);
        let (step, error) = trial.refit();
        let best = &mut best[usize::from(scale < 0.0)];
        if error < best.0 {
            *best = (error, scale + step);
        }
    };
    let (first, last, increment) = L::GRID;
    let count = ((last - first) / increment).round() as usize;
    for i in 0..=count {
        let outwards = (first + increment * i as f32) * L::STEP;
        if L::HIGH + outwards > 0.0 {
            consider(peak / (L::HIGH + outwards));
        }
        // Mirrored levels give the same again, and levels without a negative side nothing.
        if L::LOW < 0.0 && L::LOW != -L::HIGH {
            consider(peak / (L::LOW - outwards));
        }
    }
    let mut scales = [0.0; 2];
    for ((error, scale), refined) in best.into_iter().zip(&mut scales) {
        *refined = if error.is_finite() { refine(levels, x, w, scale) } else { 0.0 };
    }
    scales
}

/// Alternates rounding and the closed form of the scale until the error stays.
fn refine<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N], mut scale: f32) -> f32 {
    let mut error = f32::INFINITY;
    for _ in 0..4 {
        let trial = trial(levels, x, w, scale);
        let (step, refitted) = trial.refit();
        if refitted >= error || step == 0.0 {
            break;
        }
        error = refitted;
        scale += step;
    }
    scale
}

/// The best scale that f16 holds, and its error.
pub(super) fn search_f16<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N]) -> f16 {
    let mut best = (f32::INFINITY, f16::ZERO);
    for scale in search(levels, x, w) {
        if scale == 0.0 {
            continue;
        }
        let mut centre = finite_f16(scale);
        for _ in 0..3 {
            let mut next = centre;
            for candidate in with_neighbours(centre) {
                let trial = trial(levels, x, w, candidate.to_f32());
                if trial.error < best.0 {
                    best = (trial.error, candidate);
                    next = finite_f16(candidate.to_f32() + trial.refit().0);
                }
            }
            if next == centre {
                break;
            }
            centre = next;
        }
    }
    best.1
}

/// The indices of the nearest levels.
pub(super) fn codes<L: Levels, const N: usize>(levels: L, x: &[f32; N], scale: f32) -> [u8; N] {
    let inverse = inverse(scale);
    x.map(|value| levels.code(value * inverse))
}
