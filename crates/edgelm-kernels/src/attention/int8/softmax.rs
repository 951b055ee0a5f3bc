//! From integer scores to integer weights: one step of the online softmax per row.

use super::{Page, Room};
use crate::kv::{GROUP_TOKENS, GROUPS, PAGE_TOKENS};
use crate::simd::{LANES, Lanes, exp2_negative};
use bytemuck::cast_mut;
use std::ops::Range;

/// What the results of the rows of a tile are multiplied by.
pub(super) struct Factors {
    /// What they were before this page.
    pub(super) rescale: [f32; LANES],
    /// The integer sums of this page.
    pub(super) scale: [f32; LANES],
}

/// Turns `room.scores` into `room.weights` and moves the rows' maxima and sums on.
#[inline(always)]
pub(super) fn weigh<S: Lanes>(
    page: &Page<'_>,
    factors: &[f32],
    seen: &[Range<usize>],
    max: &mut [f32],
    sum: &mut [[f32; LANES]],
    room: &mut Room,
) -> Factors {
    let mut shift = [0.0; LANES];
    let mut before = [f32::NEG_INFINITY; LANES];
    let mut scale = [0.0; LANES];
    let mut totals = [[0.0; LANES]; LANES];
    for (row, seen) in seen.iter().enumerate() {
        before[row] = max[row];
        let (scores, weights) = (&room.scores[row], cast_mut(&mut room.weights[row]));
        let row_step = Row { page, scores, factor: factors[row], seen };
        let weighed = if *seen == (0..PAGE_TOKENS) {
            row_step.weigh::<S, true>(&mut max[row], weights)
        } else {
            row_step.weigh::<S, false>(&mut max[row], weights)
        };
        weighed.total.store(&mut totals[row]);
        (shift[row], scale[row]) = (weighed.shift, weighed.scale);
    }
    let mut rescale = [0.0; LANES];
    exp2_negative(S::load(&before).sub(S::load(&shift))).store(&mut rescale);
    for (row, sum) in sum.iter_mut().enumerate() {
        S::load(sum).mul(S::splat(rescale[row])).add(S::load(&totals[row])).store(sum);
    }
    Factors { rescale, scale }
}

struct Row<'a> {
    page: &'a Page<'a>,
    scores: &'a [crate::matmul::lanes::Line; GROUPS],
    factor: f32,
    seen: &'a Range<usize>,
}

struct Weighed<S> {
    /// Sum of the probabilities by lane.
    total: S,
    /// What was subtracted from the scores: the largest so far, 0 where there is none.
    shift: f32,
    /// What a weight of 1 is worth.
    scale: f32,
}

impl Row<'_> {
    /// Everything stays in registers from the scores to the bytes. With `WHOLE`, all tokens of the page are seen.
    #[inline(always)]
    fn weigh<S: Lanes, const WHOLE: bool>(
        &self,
        max: &mut f32,
        weights: &mut [[u8; GROUP_TOKENS]; GROUPS],
    ) -> Weighed<S> {
        let factor = S::splat(self.factor);
        let mut x = [S::splat(0.0); GROUPS];
        for group in 0..GROUPS {
            let score = S::load_i32(&self.scores[group].0).mul(S::load(&self.page.k_scales[group])).mul(factor);
            x[group] = self.keep::<S, WHOLE>(group, score, f32::NEG_INFINITY);
        }
        let largest = x[0].max(x[1]).max(x[2].max(x[3])).largest();
        if largest > *max {
            *max = largest;
        }
        // A row that has seen nothing yet subtracts 0: -∞ - (-∞) would be NaN.
        let shift = if *max > f32::NEG_INFINITY { *max } else { 0.0 };
        let mut total = S::splat(0.0);
        for group in 0..GROUPS {
            let probability = self.keep::<S, WHOLE>(group, exp2_negative(x[group].sub(S::splat(shift))), 0.0);
            total = total.add(probability);
            let weight = probability.mul(S::load(&self.page.v_scales[group]));
            x[group] = self.keep::<S, WHOLE>(group, weight, 0.0);
        }
        let largest = x[0].max(x[1]).max(x[2].max(x[3])).largest();
        let inverse = 255.0 / largest;
        let (inverse, scale) = if inverse.is_finite() { (inverse, largest * (1.0 / 255.0)) } else { (0.0, 0.0) };
        for group in 0..GROUPS {
            x[group].mul(S::splat(inverse)).store_bytes(&mut weights[group]);
        }
        Weighed { total, shift, scale }
    }

    /// x where a token is seen. Stale scales may be anything, so it is asked for after every product with one.
    #[inline(always)]
    fn keep<S: Lanes, const WHOLE: bool>(&self, group: usize, x: S, fill: f32) -> S {
        let first = (group * GROUP_TOKENS) as i32;
        if WHOLE { x } else { x.keep(self.seen.start as i32 - first, self.seen.end as i32 - first, fill) }
    }
}
