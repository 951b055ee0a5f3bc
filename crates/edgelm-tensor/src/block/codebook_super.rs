//! Search for a super-block whose value is unit · (2·code[j] + 1) · level, with one code from 0 to 15 per sub-block and levels
//! from a codebook; the unit is a fixed part of an f16.
//!
//! As in `symmetric_super.rs`: the sub-blocks are searched alone first, then the codes and the unit are chosen against the real
//! error by coordinate descent. Rounding to a codebook has no order in which a growing scale changes it, so the search
//! alone tries scales and improves each by the closed form.

use super::codebook::Vectors;
use super::symmetric::Trial;
use super::weights::finite_f16;
use half::f16;

/// The scale of a super-block and the codes of its sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Fit<const S: usize> {
    pub d: f16,
    pub codes: [u8; S],
}

/// Where the search for a sub-block's scale tries to put the largest magnitude, in largest levels. On Gaussian and heavy-tailed
/// blocks 14 of these, three starts below, and neighbouring codes in every round made errors less by 0.1 to 0.6 %, for more than
/// twice the time.
const REACHES: [f32; 9] = [0.6, 0.72, 0.84, 0.94, 1.04, 1.16, 1.35, 1.65, 2.2];

/// Starts of the descent: where the largest scale of a sub-block is put, in units. What is promising is tried.
const TOPS: [f32; 14] = [33.0, 31.5, 30.0, 28.5, 27.0, 25.5, 24.0, 22.5, 21.0, 19.5, 18.0, 16.5, 15.0, 13.0];
const TRIED: usize = 2;

/// S sub-blocks of N values. The unit is `part` · d.
pub(super) fn search_odd<Q: Vectors, const S: usize, const N: usize>(
    vectors: Q,
    part: f32,
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
) -> Fit<S> {
    let mut wishes = [Wish { scale: 0.0, stiffness: 0.0 }; S];
    for j in 0..S {
        wishes[j] = wish(vectors, &x[j], &w[j]);
    }
    let largest = wishes.iter().fold(0.0f32, |largest, wish| largest.max(wish.scale));
    let mut starts = TOPS.map(|top| {
        let unit = largest / top;
        let miss =
            |wish: &Wish| wish.stiffness * (wish.scale - unit * multiple(nearest_code(wish.scale, unit))).powi(2);
        (wishes.iter().map(miss).sum::<f32>(), unit)
    });
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = (f32::INFINITY, Fit { d: f16::ZERO, codes: [0; S] });
    for (_, unit) in &starts[..TRIED] {
        let candidate = descend(vectors, part, x, w, &wishes, *unit);
        if candidate.0 < best.0 {
            best = candidate;
        }
    }
    best.1
}

/// The best scale of a sub-block alone. Near it the error grows with stiffness · (change of scale)².
#[derive(Clone, Copy)]
struct Wish {
    scale: f32,
    stiffness: f32,
}

fn wish<Q: Vectors, const N: usize>(vectors: Q, x: &[f32; N], w: &[f32; N]) -> Wish {
    let peak = x.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
    let (top, bottom) = vectors.range();
    let (squares, weight) =
        x.iter().zip(w).fold((0.0, 0.0), |(squares, weight), (x, w)| (squares + w * x * x, weight + w));
    let spread = (squares / weight).sqrt();
    let mut best = (0.0, Wish { scale: 0.0, stiffness: 0.0 });
    // And for values of one magnitude, and for peaks that do not count.
    let tries = REACHES.map(|reach| peak / (top * reach)).into_iter().chain([peak / bottom, 2.0 * spread / top]);
    for scale in tries.filter(|scale| *scale > 0.0) {
        let Trial { slope, power, .. } = trial(vectors, x, w, scale);
        if power > 0.0 {
            // With levels q, the best scale takes (Σ w·x·q)² / Σ w·q² off Σ w·x².
            let product = slope + scale * power;
            let gain = product * product / power;
            if product > 0.0 && gain > best.0 {
                best = (gain, Wish { scale: product / power, stiffness: power });
            }
        }
    }
    best.1
}

/// Rounds a sub-block with one scale.
fn trial<Q: Vectors, const N: usize>(vectors: Q, x: &[f32; N], w: &[f32; N], scale: f32) -> Trial {
    let mut sums = Trial { error: 0.0, slope: 0.0, power: 0.0 };
    let (mut codes, mut levels) = ([0; 8], [0.0; 8]);
    for (x, w) in x.chunks_exact(Q::STEP).zip(w.chunks_exact(Q::STEP)) {
        vectors.choose(scale, x, w, &mut codes[..Q::STEP], &mut levels[..Q::STEP]);
        for ((x, w), q) in x.iter().zip(w).zip(levels) {
            let rest = x - scale * q;
            sums.error += w * rest * rest;
            sums.slope += w * rest * q;
            sums.power += w * q * q;
        }
    }
    sums
}

fn multiple(code: i32) -> f32 {
    (2 * code + 1) as f32
}

fn nearest_code(scale: f32, unit: f32) -> i32 {
    ((0.5 * (scale / unit - 1.0)).round() as i32).clamp(0, 15)
}

fn descend<Q: Vectors, const S: usize, const N: usize>(
    vectors: Q,
    part: f32,
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
    wishes: &[Wish; S],
    start: f32,
) -> (f32, Fit<S>) {
    let mut fit = Fit { d: finite_f16(start / part), codes: [0; S] };
    let mut best = (f32::INFINITY, fit);
    for round in 0..4 {
        let unit = part * fit.d.to_f32();
        if unit == 0.0 {
            break;
        }
        let (mut error, mut slope, mut power) = (0.0f32, 0.0f32, 0.0f32);
        for j in 0..S {
            let centre = if round == 0 { nearest_code(wishes[j].scale, unit) } else { i32::from(fit.codes[j]) };
            let mut found = (Trial { error: f32::INFINITY, slope: 0.0, power: 0.0 }, centre);
            // Later the unit moves by too little to change codes.
            let reach = i32::from(round == 0);
            for code in (centre - reach).max(0)..=(centre + reach).min(15) {
                let trial = trial(vectors, &x[j], &w[j], unit * multiple(code));
                if trial.error < found.0.error {
                    found = (trial, code);
                }
            }
            fit.codes[j] = found.1 as u8;
            error += found.0.error;
            slope += found.0.slope * multiple(found.1);
            power += found.0.power * multiple(found.1).powi(2);
        }
        if error >= best.0 {
            break;
        }
        best = (error, fit);
        if power > 0.0 {
            fit.d = finite_f16((unit + slope / power) / part);
        }
        if part * fit.d.to_f32() == unit {
            break;
        }
    }
    best
}
