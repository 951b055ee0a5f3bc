//! A few query rows against one page: scores, one step of the online softmax, weighted values.
//!
//! A row's arithmetic is the same in every tile: each score and each component of the result is its own chain of
//! multiply-adds in index order, however many run side by side. A key outside a row's range weighs exactly 0, and a page
//! without a key for the row rescales by exactly 1.

use super::page::Stored;
use super::scores::Shaping;
use crate::kv::{GROUP_TOKENS, GROUPS, PAGE_TOKENS, PageRow};
use crate::simd::{LANES, Lanes, exp};
use std::ops::Range;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 8;

pub(super) struct Tile<'a, S> {
    pub(super) stored: S,
    pub(super) components: usize,
    pub(super) chunks: usize,
    /// Tokens of the page that each row sees.
    pub(super) seen: &'a [Range<usize>],
    /// Position of the page's first token.
    pub(super) first: usize,
    /// Of each row, where scores are more than products.
    pub(super) shaping: Option<&'a [Shaping]>,
    /// Scaled queries `[row][components]`.
    pub(super) q: &'a [f32],
    /// Unnormalized results `[row][chunks]`.
    pub(super) out: &'a mut [[f32; LANES]],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [[f32; LANES]],
}

impl<S: Stored> Tile<'_, S> {
    /// With m' = max(m, max_s score_s) and c = exp(m - m'):
    /// out ← c · out + Σ_s exp(score_s - m') · v_s, sum ← c · sum + Σ_s exp(score_s - m'), m ← m'.
    #[inline(always)]
    pub(super) fn step<L: Lanes>(self) {
        let (mut start, mut end) = (PAGE_TOKENS, 0);
        for seen in self.seen.iter().filter(|seen| !seen.is_empty()) {
            start = start.min(seen.start);
            end = end.max(seen.end);
        }
        if start >= end {
            return;
        }
        let tokens = start..end;
        let groups = tokens.start / GROUP_TOKENS..tokens.end.div_ceil(GROUP_TOKENS);
        let mut weights = [[[0.0; LANES]; GROUPS]; TILE_ROWS];
        let Self { stored, components, chunks, seen, first, shaping, q, out, max, sum } = self;
        in_registers::<L>(seen.len(), Scores { stored, q, components, groups: &groups, weights: &mut weights });
        if let Some(shaping) = shaping {
            shape::<L>(shaping, first, &groups, &mut weights);
        }
        let rescale = softmax::<L>(seen, &groups, &mut weights, max, sum);
        in_registers::<L>(seen.len(), Values { stored, chunks, tokens, weights: &weights, rescale: &rescale, out });
    }
}

/// Turns products into scores.
#[inline(always)]
fn shape<L: Lanes>(shaping: &[Shaping], first: usize, groups: &Range<usize>, weights: &mut [PageRow; TILE_ROWS]) {
    for (shaping, row) in shaping.iter().zip(weights) {
        for group in groups.clone() {
            shaping.apply(first + group * GROUP_TOKENS, L::load(&row[group])).store(&mut row[group]);
        }
    }
}

/// Turns scores into weights and moves the rows' maxima and sums on; returns what the old results are worth now.
#[inline(always)]
fn softmax<L: Lanes>(
    seen: &[Range<usize>],
    groups: &Range<usize>,
    weights: &mut [PageRow; TILE_ROWS],
    max: &mut [f32],
    sum: &mut [[f32; LANES]],
) -> [f32; LANES] {
    // A row that has seen nothing yet keeps -∞ and subtracts 0 instead: -∞ - (-∞) would be NaN.
    let mut shift = [0.0; LANES];
    let mut before = [f32::NEG_INFINITY; LANES];
    for (row, seen) in seen.iter().enumerate() {
        let mut largest = L::splat(f32::NEG_INFINITY);
        for group in groups.clone() {
            let first = (group * GROUP_TOKENS) as i32;
            let mut scores = L::load(&weights[row][group]);
            if (seen.start as i32) > first || (seen.end as i32) < first + GROUP_TOKENS as i32 {
                scores = scores.keep(seen.start as i32 - first, seen.end as i32 - first, f32::NEG_INFINITY);
                scores.store(&mut weights[row][group]);
            }
            largest = largest.max(scores);
        }
        let largest = largest.largest();
        before[row] = max[row];
        if largest > max[row] {
            max[row] = largest;
        }
        if max[row] > f32::NEG_INFINITY {
            shift[row] = max[row];
        }
    }
    let mut rescale = [0.0; LANES];
    exp(L::load(&before).sub(L::load(&shift))).store(&mut rescale);
    for row in 0..seen.len() {
        let shift = L::splat(shift[row]);
        let mut total = L::load(&sum[row]).mul(L::splat(rescale[row]));
        for group in groups.clone() {
            let weight = exp(L::load(&weights[row][group]).sub(shift));
            weight.store(&mut weights[row][group]);
            total = total.add(weight);
        }
        total.store(&mut sum[row]);
    }
    rescale
}

/// A product of a few rows whose sums stay in registers.
trait Product {
    /// Rows `row..row + ROWS`, `SIDE` columns of sixteen at a time while that many are left.
    fn rows<L: Lanes, const ROWS: usize, const SIDE: usize>(&mut self, row: usize);
}

/// Covers `rows` rows with the largest pieces whose ROWS · SIDE sums fit. Many rows make the most of a load of keys or
/// values; few rows take more columns side by side, since one chain of multiply-adds waits for itself.
#[inline(always)]
fn in_registers<L: Lanes>(rows: usize, mut product: impl Product) {
    let mut row = 0;
    while L::ACCUMULATORS >= 16 && row + 8 <= rows {
        product.rows::<L, 8, 2>(row);
        row += 8;
    }
    while L::ACCUMULATORS >= 4 && row + 4 <= rows {
        if L::ACCUMULATORS >= 16 {
            product.rows::<L, 4, 4>(row);
        } else {
            product.rows::<L, 4, 1>(row);
        }
        row += 4;
    }
    while row + 2 <= rows {
        if L::ACCUMULATORS >= 16 {
            product.rows::<L, 2, 4>(row);
        } else if L::ACCUMULATORS >= 4 {
            product.rows::<L, 2, 2>(row);
        } else {
            product.rows::<L, 2, 1>(row);
        }
        row += 2;
    }
    if row < rows {
        if L::ACCUMULATORS >= 4 {
            product.rows::<L, 1, 4>(row);
        } else {
            product.rows::<L, 1, 2>(row);
        }
    }
}

/// weights[row][s] = q[row] · k[s] for the tokens of `groups`.
struct Scores<'a, S> {
    stored: S,
    q: &'a [f32],
    components: usize,
    groups: &'a Range<usize>,
    weights: &'a mut [PageRow; TILE_ROWS],
}

impl<S: Stored> Product for Scores<'_, S> {
    #[inline(always)]
    fn rows<L: Lanes, const ROWS: usize, const SIDE: usize>(&mut self, row: usize) {
        let mut group = self.groups.start;
        while group + SIDE <= self.groups.end {
            self.dot::<L, ROWS, SIDE>(row, group);
            group += SIDE;
        }
        while group < self.groups.end {
            self.dot::<L, ROWS, 1>(row, group);
            group += 1;
        }
    }
}

impl<S: Stored> Scores<'_, S> {
    #[inline(always)]
    fn dot<L: Lanes, const ROWS: usize, const SIDE: usize>(&mut self, row: usize, group: usize) {
        let components = self.components;
        let mut q: [&[f32]; ROWS] = [&[]; ROWS];
        for (index, q) in q.iter_mut().enumerate() {
            *q = &self.q[(row + index) * components..][..components];
        }
        let mut sums = [[L::splat(0.0); SIDE]; ROWS];
        for quad in 0..components / 4 {
            let mut keys = [[L::splat(0.0); 4]; SIDE];
            for (side, keys) in keys.iter_mut().enumerate() {
                *keys = self.stored.keys(group + side, quad);
            }
            for component in 0..4 {
                for (sums, q) in sums.iter_mut().zip(&q) {
                    let query = L::splat(q[4 * quad + component]);
                    for (sum, keys) in sums.iter_mut().zip(&keys) {
                        *sum = query.mul_add(keys[component], *sum);
                    }
                }
            }
        }
        for (sums, weights) in sums.iter().zip(&mut self.weights[row..]) {
            for (sum, to) in sums.iter().zip(&mut weights[group..]) {
                sum.store(to);
            }
        }
    }
}

/// out[row] = rescale[row] · out[row] + Σ_s weights[row][s] · v[s] over `tokens`.
struct Values<'a, S> {
    stored: S,
    chunks: usize,
    tokens: Range<usize>,
    weights: &'a [PageRow; TILE_ROWS],
    rescale: &'a [f32; LANES],
    out: &'a mut [[f32; LANES]],
}

impl<S: Stored> Product for Values<'_, S> {
    #[inline(always)]
    fn rows<L: Lanes, const ROWS: usize, const SIDE: usize>(&mut self, row: usize) {
        let mut chunk = 0;
        while chunk + SIDE <= self.chunks {
            self.add::<L, ROWS, SIDE>(row, chunk);
            chunk += SIDE;
        }
        while chunk < self.chunks {
            self.add::<L, ROWS, 1>(row, chunk);
            chunk += 1;
        }
    }
}

impl<S: Stored> Values<'_, S> {
    #[inline(always)]
    fn add<L: Lanes, const ROWS: usize, const SIDE: usize>(&mut self, row: usize, chunk: usize) {
        let chunks = self.chunks;
        let mut sums = [[L::splat(0.0); SIDE]; ROWS];
        for (index, sums) in sums.iter_mut().enumerate() {
            let rescale = L::splat(self.rescale[row + index]);
            for (sum, out) in sums.iter_mut().zip(&self.out[(row + index) * chunks + chunk..]) {
                *sum = L::load(out).mul(rescale);
            }
        }
        let tokens = self.tokens.len();
        let mut weights: [&[f32]; ROWS] = [&[]; ROWS];
        for (index, weights) in weights.iter_mut().enumerate() {
            *weights = &self.weights[row + index].as_flattened()[self.tokens.start..][..tokens];
        }
        for token in 0..tokens {
            let mut values = [L::splat(0.0); SIDE];
            for (side, values) in values.iter_mut().enumerate() {
                *values = self.stored.values(self.tokens.start + token, chunk + side);
            }
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = L::splat(weights[token]);
                for (sum, &values) in sums.iter_mut().zip(&values) {
                    *sum = weight.mul_add(values, *sum);
                }
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            for (sum, to) in sums.iter().zip(&mut self.out[(row + index) * chunks + chunk..]) {
                sum.store(to);
            }
        }
    }
}
