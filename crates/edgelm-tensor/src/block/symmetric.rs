//! Search for the scale of a block whose value is scale · level.
//!
//! For given levels the best scale has a closed form, for a given scale the best levels are the nearest ones. As
//! the scale shrinks, the values of a block cross the borders between levels one at a time; walking through these
//! crossings in order, with the sums of the closed form kept up to date, visits every rounding that any scale of a
//! range gives, and so finds the best one.

use super::weights::{finite_f16, with_neighbours};
use half::f16;

/// The numbers a format multiplies its scale by.
pub trait Levels: Copy {
    /// Least level.
    const LOW: f32;
    /// Greatest level.
    const HIGH: f32;
    /// The scales of the search map the value of the largest magnitude to LOW or HIGH, moved outwards by no less
    /// than the first and no more than the second number: more than 0 clips it. What lies beyond wins
    /// too seldom: on weighted Gaussian and Student-t blocks the errors are within 0.3 % (8 bits: 2.1 %) of those of
    /// a scan over a range of 1 to 3.
    const RANGE: (f32, f32);

    /// The level nearest to `t`, which is finite.
    fn nearest(self, t: f32) -> f32;

    /// The index of the level nearest to `t`.
    fn code(self, t: f32) -> u8;

    /// The level of an index.
    fn level(self, code: u8) -> f32;

    /// The border between the levels of `code` and of `code + 1`.
    fn border(self, code: u8) -> f32;
}

/// All integers from LOW to HIGH.
#[derive(Clone, Copy)]
pub struct Integers<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Levels for Integers<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    // More levels, more room inwards: there one step less costs little. The fractions are below one half so that
    // a decoded block, whose peak is a whole level, finds its own scale inside the range.
    const RANGE: (f32, f32) = match HIGH {
        100.. => (-12.4, 1.5),
        16.. => (-4.4, 2.5),
        8.. => (-2.4, 2.5),
        2.. => (-1.4, 2.5),
        // The peak must have a level other than zero.
        _ => (-0.4, 2.5),
    };

    fn nearest(self, t: f32) -> f32 {
        round(clamp(t, Self::LOW, Self::HIGH))
    }

    fn code(self, t: f32) -> u8 {
        (self.nearest(t) - Self::LOW) as u8
    }

    fn level(self, code: u8) -> f32 {
        Self::LOW + f32::from(code)
    }

    fn border(self, code: u8) -> f32 {
        Self::LOW + f32::from(code) + 0.5
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

/// The best scale of each sign, positive first; 0 for a sign that has none.
pub(super) fn search<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N]) -> [f32; 2] {
    let peak = x.iter().fold(0.0f32, |peak, value| if value.abs() > peak.abs() { *value } else { peak });
    let mut scales = [0.0; 2];
    if peak.abs() < 1e-30 {
        return scales;
    }
    for end in [L::HIGH, L::LOW] {
        // Mirrored levels give the same scales again, levels without a negative side none.
        if end == L::HIGH || (end < 0.0 && end != -L::HIGH) {
            let sign = (end * peak).signum();
            let first = (end.abs() + L::RANGE.0).max(0.5) / peak.abs();
            let last = (end.abs() + L::RANGE.1) / peak.abs();
            scales[usize::from(sign < 0.0)] = sweep(levels, x, w, sign, first, last);
        }
    }
    scales
}

/// Room for the crossings of 32 values; formats with wider blocks do not exist.
const CROSSINGS: usize = 512;

/// The best scale with this sign whose inverse lies between `first` and `last` in magnitude.
///
/// With q the levels, that is the one of the largest (Σ w·x·q)² / Σ w·q², which is what rounding takes off Σ w·x².
fn sweep<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N], sign: f32, first: f32, last: f32) -> f32 {
    // Sorted by the inverse scale of the crossing; positive floats sort as their bits do.
    let mut crossings = [0u64; CROSSINGS];
    let mut count = 0;
    let mut codes = [0u8; N];
    // f64: the gain of a crossing in 8-bit formats is a millionth of the sums.
    let (mut wxq, mut wqq) = (0.0f64, 0.0f64);
    for i in 0..N {
        let towards = sign * x[i];
        let (start, end) = (levels.code(towards * first), levels.code(towards * last));
        codes[i] = start;
        let level = levels.level(start);
        wxq += f64::from(w[i] * towards) * f64::from(level);
        wqq += f64::from(w[i]) * f64::from(level * level);
        let per_value = 1.0 / towards;
        for code in start.min(end)..start.max(end) {
            if count < CROSSINGS {
                let at = (levels.border(code) * per_value).max(first);
                crossings[count] = (u64::from(at.to_bits()) << 32) | i as u64;
                count += 1;
            }
        }
    }
    crossings[..count].sort_unstable();
    let mut best = (wxq, wqq);
    for crossing in &crossings[..count] {
        let i = (crossing & 0xffff_ffff) as usize;
        let towards = sign * x[i];
        let old = levels.level(codes[i]);
        codes[i] = if towards > 0.0 { codes[i] + 1 } else { codes[i] - 1 };
        let new = levels.level(codes[i]);
        wxq += f64::from(w[i] * towards) * f64::from(new - old);
        wqq += f64::from(w[i]) * f64::from(new * new - old * old);
        if wxq * wxq * best.1 > best.0 * best.0 * wqq && wxq > 0.0 {
            best = (wxq, wqq);
        }
    }
    if best.0 > 0.0 && best.1 > 0.0 { sign * (best.0 / best.1) as f32 } else { 0.0 }
}

/// The best scale that f16 holds.
pub(super) fn search_f16<L: Levels, const N: usize>(levels: L, x: &[f32; N], w: &[f32; N]) -> f16 {
    let mut best = (f32::INFINITY, f16::ZERO);
    for scale in search(levels, x, w) {
        for candidate in with_neighbours(finite_f16(scale)) {
            let error = trial(levels, x, w, candidate.to_f32()).error;
            if error < best.0 {
                best = (error, candidate);
            }
        }
    }
    best.1
}
