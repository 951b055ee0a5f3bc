//! From integer scores to integer weights: one step of the online softmax per row.

use super::{Page, Seen, TILE_ROWS, Weights};
use crate::attention::scores::Shaping;
use crate::kv::{GROUP_TOKENS, GROUPS, PAGE_TOKENS};
use crate::matmul::lanes::Line;
use crate::simd::{LANES, Lanes, exp2_negative};
use bytemuck::cast_mut;
use std::ops::Range;

/// Turns scores into weights and moves the rows' maxima and sums on.
#[inline(always)]
pub(super) fn weigh<S: Lanes>(
    page: &Page<'_>,
    factors: &[f32],
    seen: &Seen<'_>,
    scores: &[[Line; GROUPS]],
    max: &mut [f32],
    sum: &mut [[f32; LANES]],
    weights: &mut Weights,
) {
    let mut shift = [0.0; LANES];
    let mut before = [f32::NEG_INFINITY; LANES];
    let mut totals = [[0.0; LANES]; TILE_ROWS];
    for (row, tokens) in seen.tokens.iter().enumerate() {
        before[row] = max[row];
        let shaping = seen.shaping.map(|rows| rows[row]);
        let step = Row { page, scores: &scores[row], factor: factors[row], seen: tokens, first: seen.first, shaping };
        let bytes = cast_mut(&mut weights.bytes[row]);
        let weighed = if shaping.is_some() {
            step.weigh::<S, false, true>(&mut max[row], bytes)
        } else if *tokens == (0..PAGE_TOKENS) {
            step.weigh::<S, true, false>(&mut max[row], bytes)
        } else {
            step.weigh::<S, false, false>(&mut max[row], bytes)
        };
        weighed.total.store(&mut totals[row]);
        (shift[row], weights.scale[row]) = (weighed.shift, weighed.scale);
    }
    exp2_negative(S::load(&before).sub(S::load(&shift))).store(&mut weights.rescale);
    for (row, sum) in sum.iter_mut().enumerate() {
        S::load(sum).mul(S::splat(weights.rescale[row])).add(S::load(&totals[row])).store(sum);
    }
}

struct Row<'a> {
    page: &'a Page<'a>,
    scores: &'a [Line; GROUPS],
    factor: f32,
    seen: &'a Range<usize>,
    /// Position of the page's first token.
    first: usize,
    shaping: Option<Shaping>,
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
    /// Everything stays in registers from the scores to the bytes. With `WHOLE`, all tokens of the page are seen; without
    /// `SHAPED`, scores are products.
    #[inline(always)]
    fn weigh<S: Lanes, const WHOLE: bool, const SHAPED: bool>(
        &self,
        max: &mut f32,
        weights: &mut [[u8; GROUP_TOKENS]; GROUPS],
    ) -> Weighed<S> {
        let factor = S::splat(self.factor);
        let mut x = [S::splat(0.0); GROUPS];
        for group in 0..GROUPS {
            let score = S::load_i32(&self.scores[group].0).mul(S::load(&self.page.k_scales[group])).mul(factor);
            let score = match &self.shaping {
                Some(shaping) if SHAPED => shaping.apply(self.first + group * GROUP_TOKENS, score),
                _ => score,
            };
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
