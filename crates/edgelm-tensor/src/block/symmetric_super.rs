//! Search for a super-block whose value is d · code[j] · level, with one integer code per sub-block.
//!
//! The sub-blocks are searched alone first; then the codes and d are chosen against the real error by coordinate
//! descent: for a given d each sub-block tries neighbouring codes, for given codes and levels d has a closed form.

use super::symmetric::{Integers, Levels, Trial, search, trial};
use super::weights::finite_f16;
use half::f16;

/// The scale of a super-block and the codes of its sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Fit<const S: usize> {
    pub d: f16,
    pub codes: [i32; S],
}

/// S sub-blocks of N values; codes from LOW to HIGH.
pub(super) fn search_super<L: Levels, const S: usize, const N: usize, const LOW: i32, const HIGH: i32>(
    levels: L,
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
) -> Fit<S> {
    let wishes: [[f32; 2]; S] = std::array::from_fn(|j| search(levels, &x[j], &w[j]));
    let mut scales = [0.0f32; S];
    let mut stiffness = [0.0f32; S];
    for j in 0..S {
        let trials = wishes[j].map(|scale| trial(levels, &x[j], &w[j], scale));
        let better = usize::from(trials[1].error < trials[0].error);
        scales[j] = wishes[j][better];
        stiffness[j] = trials[better].power;
    }
    // Near its own best scale a sub-block's error grows with stiffness · (change of scale)².
    let [positive, negative] = search(Integers::<LOW, HIGH>, &scales, &stiffness);
    let peak = scales.iter().fold(0.0f32, |peak, scale| if scale.abs() > peak.abs() { *scale } else { peak });
    let starts = [positive, negative, peak / LOW as f32, peak / HIGH as f32];

    let mut best = (f32::INFINITY, Fit { d: f16::ZERO, codes: [0; S] });
    for start in starts {
        let candidate = descend::<L, S, N, LOW, HIGH>(levels, x, w, &wishes, start);
        if candidate.0 < best.0 {
            best = candidate;
        }
    }
    best.1
}

fn descend<L: Levels, const S: usize, const N: usize, const LOW: i32, const HIGH: i32>(
    levels: L,
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
    wishes: &[[f32; 2]; S],
    start: f32,
) -> (f32, Fit<S>) {
    let mut fit = Fit { d: finite_f16(start), codes: [0; S] };
    let mut best = (f32::INFINITY, fit);
    for round in 0..4 {
        let d = fit.d.to_f32();
        if d == 0.0 {
            break;
        }
        let (mut error, mut slope, mut power) = (0.0f32, 0.0f32, 0.0f32);
        for j in 0..S {
            let mut found: Option<(Trial, i32)> = None;
            let mut consider = |code: i32| {
                let trial = trial(levels, &x[j], &w[j], d * code as f32);
                if found.is_none_or(|(best, _)| trial.error < best.error) {
                    found = Some((trial, code));
                }
            };
            if round == 0 {
                consider(0);
                for wish in wishes[j] {
                    let centre = ((wish / d).round() as i32).clamp(LOW, HIGH);
                    for code in (centre - 1).max(LOW)..=(centre + 1).min(HIGH) {
                        consider(code);
                    }
                }
            } else {
                let centre = fit.codes[j];
                for code in (centre - 1).max(LOW)..=(centre + 1).min(HIGH) {
                    consider(code);
                }
            }
            if let Some((trial, code)) = found {
                fit.codes[j] = code;
                error += trial.error;
                slope += trial.slope * code as f32;
                power += trial.power * (code * code) as f32;
            }
        }
        if error >= best.0 {
            break;
        }
        best = (error, fit);
        if power > 0.0 {
            fit.d = finite_f16(d + slope / power);
        }
        if fit.d.to_f32() == d {
            break;
        }
    }
    best
}
