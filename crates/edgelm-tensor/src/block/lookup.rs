//! What nf4 and fp4 share: codes of 4 bits that index a fixed table of values from −1 to 1, and one scale, the value of 1.
//!
//! Source: Dettmers et al. 2023, arXiv:2305.14314, and the bitsandbytes library, which calls the scale `absmax`.

use super::weights::{finite_f16, with_neighbours};
use super::{Grid, packing, weights};
use half::f16;

/// A table and what rounding to it needs.
#[derive(Debug)]
pub struct LookupTable {
    /// Values by code.
    pub values: [f32; 16],
    /// Codes by value, the least first.
    order: [u8; 16],
    /// `borders[i]` lies half way between the values of `order[i]` and `order[i + 1]`.
    borders: [f32; 15],
}

impl LookupTable {
    /// `order`: codes by value. Of two codes of one value the second in that order is the one that is written.
    pub(super) const fn new(values: [f32; 16], order: [u8; 16]) -> Self {
        let mut borders = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            let (low, high) = (values[order[i] as usize], values[order[i + 1] as usize]);
            borders[i] = if low == high { borders[i - 1] } else { (low + high) / 2.0 };
            i += 1;
        }
        Self { values, order, borders }
    }

    fn code(&self, t: f32) -> u8 {
        self.order[self.borders.iter().filter(|border| t > **border).count()]
    }

    /// The value nearest to `t`. A sum of steps instead of a search: it has no branches and vectorizes.
    fn nearest(&self, t: f32) -> f32 {
        let value = |i: usize| self.values[usize::from(self.order[i])];
        let step = |i: usize| if t > self.borders[i] { value(i + 1) - value(i) } else { 0.0 };
        value(0) + (0..15).map(step).sum::<f32>()
    }

    /// The scale with the least Σ w · (x − scale · value)². Scales are tried from a quarter below the largest magnitude, which
    /// clips it, to a quarter above; the best is refitted to its codes by least squares. Weights must not be negative.
    pub fn search(&self, x: &[f32], w: &[f32]) -> f16 {
        let peak = x.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
        let mut best = (f32::INFINITY, f16::ZERO);
        let mut attempt = |scale: f16| {
            let (error, fitted) = self.trial(x, w, scale.to_f32());
            if error < best.0 && scale > f16::ZERO {
                best = (error, scale);
            }
            (best.1, fitted)
        };
        let mut found = f16::ZERO;
        for step in 0..=STEPS {
            let part = 1.0 + SPREAD * (2.0 * step as f32 / STEPS as f32 - 1.0);
            found = attempt(finite_f16(part * peak)).0;
        }
        for _ in 0..REFITS {
            let fitted = attempt(found).1;
            let refitted = attempt(finite_f16(fitted)).0;
            if refitted == found {
                break;
            }
            found = refitted;
        }
        with_neighbours(found).into_iter().map(&mut attempt).last().map_or(found, |last| last.0)
    }

    /// Σ w · (x − scale · value)², and the scale that is best for these codes.
    fn trial(&self, x: &[f32], w: &[f32], scale: f32) -> (f32, f32) {
        let inverse = inverse(scale);
        let (mut error, mut wxv, mut wvv) = (0.0, 0.0, 0.0);
        for (x, w) in x.iter().zip(w) {
            let value = self.nearest(x * inverse);
            let rest = x - scale * value;
            error += w * rest * rest;
            wxv += w * x * value;
            wvv += w * value * value;
        }
        (error, if wvv > 0.0 { wxv / wvv } else { 0.0 })
    }
}

/// Scales that are tried, less one; by how much the outermost differ from the largest magnitude; refits of the best.
const STEPS: usize = 24;
const SPREAD: f32 = 0.25;
const REFITS: usize = 3;

/// 1 / scale, and 0 for what has none.
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// value = scale · table[code], for runs of any length.
pub struct LookupGrid {
    table: &'static LookupTable,
    scale: f32,
    inverse: f32,
}

impl LookupGrid {
    /// The values under one scale.
    pub fn new(table: &'static LookupTable, scale: f16) -> Self {
        Self::scaled(table, scale.to_f32())
    }

    /// The same for a scale that is no f16.
    pub(super) fn scaled(table: &'static LookupTable, scale: f32) -> Self {
        Self { table, scale, inverse: inverse(scale) }
    }
}

impl Grid for LookupGrid {
    const STEP: usize = 1;

    fn choose(&self, _at: usize, values: &[f32], _weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        let code = self.table.code(values[0] * self.inverse);
        codes[0] = u16::from(code);
        decoded[0] = self.scale * self.table.values[usize::from(code)];
    }
}

/// The scale and nibbles of a block of 32.
pub(super) fn encode(table: &'static LookupTable, values: &[f32], importance: Option<&[f32]>) -> (f16, [u8; 16]) {
    let (scale, x, w) = match weights::prepare::<32>(values, importance, f16::MAX.to_f32_const()) {
        Some((x, w)) => (table.search(&x, &w), x, w),
        None => (f16::ZERO, [0.0; 32], [1.0; 32]),
    };
    let codes = super::grid::nearest(&LookupGrid::new(table, scale), &x, &w);
    (scale, packing::pack(&packing::small(&codes)))
}

/// The values of a block of 32.
pub(super) fn decode(table: &LookupTable, scale: f16, nibbles: &[u8; 16], out: &mut [f32]) {
    assert_eq!(out.len(), 32);
    let scale = scale.to_f32();
    for (out, code) in out.iter_mut().zip(packing::unpack(nibbles)) {
        *out = scale * table.values[usize::from(code)];
    }
}
