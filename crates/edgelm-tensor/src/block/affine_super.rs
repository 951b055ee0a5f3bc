//! Search for a super-block whose value is d · scale[j] · q − dmin · min[j], with two integer codes per sub-block.
//!
//! The sub-blocks are searched alone first; then codes, d and dmin are chosen against the real error by coordinate
//! descent: for given d and dmin each sub-block walks to the best neighbouring pair of codes, for given codes and q
//! the best d and dmin solve a 2×2 system.

use super::affine::{Pair, Trial, search, trial};
use super::symmetric::{self, Integers};
use super::weights::finite_f16;
use half::f16;

/// The scales of a super-block and the codes of its sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Fit<const S: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scales: [u8; S],
    pub mins: [u8; S],
}

fn pair(d: f32, dmin: f32, scale: u8, min: u8) -> Pair {
    Pair { scale: d * f32::from(scale), min: -(dmin * f32::from(min)) }
}

/// S sub-blocks of N values, q up to `high`, codes up to CODE. `starts`: the codes that the largest scale is given
/// at the start of a descent; each costs a descent.
pub(super) fn search_super<const S: usize, const N: usize, const CODE: i32>(
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
    high: f32,
    starts: &[f32],
) -> Fit<S> {
    let wishes: [Pair; S] = std::array::from_fn(|j| search(&x[j], &w[j], high, false));
    let scales = wishes.map(|wish| wish.scale);
    let mins = wishes.map(|wish| -wish.min);
    // Near its own best pair a sub-block's error grows with these times the squared change.
    let stiffness: [f32; S] = std::array::from_fn(|j| trial(&x[j], &w[j], high, wishes[j]).qq);
    let weight: [f32; S] = std::array::from_fn(|j| w[j].iter().sum());
    let [d_fitted, _] = symmetric::search(Integers::<0, CODE>, &scales, &stiffness);
    let [dmin, _] = symmetric::search(Integers::<0, CODE>, &mins, &weight);
    let peak = scales.iter().fold(0.0f32, |peak, scale| peak.max(*scale));

    let mut best = (f32::INFINITY, Fit { d: f16::ZERO, dmin: f16::ZERO, scales: [0; S], mins: [0; S] });
    for d in std::iter::once(d_fitted).chain(starts.iter().map(|code| peak / code)) {
        let candidate = descend::<S, N, CODE>(x, w, &weight, high, &wishes, d, dmin);
        if candidate.0 < best.0 {
            best = candidate;
        }
    }
    best.1
}

fn descend<const S: usize, const N: usize, const CODE: i32>(
    x: &[[f32; N]; S],
    w: &[[f32; N]; S],
    weight: &[f32; S],
    high: f32,
    wishes: &[Pair; S],
    d: f32,
    dmin: f32,
) -> (f32, Fit<S>) {
    let code = |wish: f32, unit: f32| (wish * symmetric::inverse(unit)).round().clamp(0.0, CODE as f32) as u8;
    let (d, dmin) = (finite_f16(d), finite_f16(dmin));
    let scales = wishes.map(|wish| code(wish.scale, d.to_f32()));
    let mins = wishes.map(|wish| code(-wish.min, dmin.to_f32()));
    let mut fit = Fit { d, dmin, scales, mins };
    let mut best = (f32::INFINITY, fit);
    for _ in 0..4 {
        let (d, dmin) = (fit.d.to_f32(), fit.dmin.to_f32());
        let mut normal = Normal::default();
        for j in 0..S {
            let (trial, scale, min) = walk::<N, CODE>(&x[j], &w[j], high, d, dmin, (fit.scales[j], fit.mins[j]));
            (fit.scales[j], fit.mins[j]) = (scale, min);
            normal.add(&trial, weight[j], f32::from(scale), f32::from(min));
        }
        // Rounding noise must not keep the loop alive.
        if normal.error >= best.0 * 0.9999 {
            if normal.error < best.0 {
                best = (normal.error, fit);
            }
            break;
        }
        best = (normal.error, fit);
        let (step_d, step_dmin) = normal.solve();
        fit.d = finite_f16(d + step_d);
        fit.dmin = finite_f16(dmin + step_dmin);
        if (fit.d.to_f32(), fit.dmin.to_f32()) == (d, dmin) {
            break;
        }
    }
    best
}

/// Moves to the best of the eight neighbouring pairs of codes while that helps.
fn walk<const N: usize, const CODE: i32>(
    x: &[f32; N],
    w: &[f32; N],
    high: f32,
    d: f32,
    dmin: f32,
    start: (u8, u8),
) -> (Trial, u8, u8) {
    let mut best = (trial(x, w, high, pair(d, dmin, start.0, start.1)), start.0, start.1);
    for _ in 0..3 {
        let (_, scale, min) = best;
        let mut moved = false;
        for next_scale in scale.saturating_sub(1)..=(scale + 1).min(CODE as u8) {
            for next_min in min.saturating_sub(1)..=(min + 1).min(CODE as u8) {
                if (next_scale, next_min) == (scale, min) {
                    continue;
                }
                let candidate = trial(x, w, high, pair(d, dmin, next_scale, next_min));
                if candidate.error < best.0.error {
                    best = (candidate, next_scale, next_min);
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
    best
}

/// The normal equations of d and dmin for fixed codes and q, as steps from where they are.
#[derive(Default)]
struct Normal {
    error: f32,
    /// Σ w·(s·q)², Σ w·s·q·m, Σ w·m²
    dd: f32,
    dm: f32,
    mm: f32,
    /// Σ w·r·s·q, Σ w·r·m
    slope_d: f32,
    slope_m: f32,
}

impl Normal {
    fn add(&mut self, trial: &Trial, weight: f32, scale: f32, min: f32) {
        self.error += trial.error;
        self.dd += trial.qq * scale * scale;
        self.dm += trial.q * scale * min;
        self.mm += weight * min * min;
        self.slope_d += trial.slope_scale * scale;
        self.slope_m += trial.slope_min * min;
    }

    /// r falls with d·s·q and rises with dmin·m: [dd −dm; −dm mm]·step = [slope_d; −slope_m].
    fn solve(&self) -> (f32, f32) {
        let determinant = self.dd * self.mm - self.dm * self.dm;
        if determinant > 1e-7 * self.dd * self.mm {
            (
                (self.slope_d * self.mm - self.slope_m * self.dm) / determinant,
                (self.slope_d * self.dm - self.slope_m * self.dd) / determinant,
            )
        } else if self.dd > 0.0 {
            (self.slope_d / self.dd, 0.0)
        } else {
            (0.0, 0.0)
        }
    }
}
