//! Attention over a [`KvDtype::Q8`](crate::KvDtype::Q8) cache in integer arithmetic.
//!
//! Per query row q, against pages of 64 tokens s with keys k̂_s · a_s and values v̂_s · b_s (k̂, v̂ signed bytes):
//!
//! - q is rounded to signed bytes q̂ with one scale c = max|q| / 127.
//! - score_s = (f32(Σ_e q̂_e k̂_s,e) · a_s) · (c · scale · log2 e), a power of two.
//! - m' = max(m, max_s score_s), p_s = 2^(score_s - m'), r = 2^(m - m').
//! - w_s = p_s · b_s; ŵ_s = round(w_s / u), unsigned bytes, with u = max_s w_s / 255 over the page.
//! - out ← r · out + u · f32(Σ_s ŵ_s v̂_s), sum ← r · sum + Σ_s p_s, m ← m'; the result is out / sum.
//!
//! Numerics: both integer sums are exact, and every f32 operation is a single one that rounds once, in an order that
//! depends on the position only: all instruction sets, thread counts, batches and chunks give the same bits. Against the
//! exact softmax of the stored keys and values, a score is off by at most c/2 · Σ_e |k_s,e| · scale, and the numerator by
//! at most u/2 · Σ_s |v̂_s| over the tokens of each page, that is 1/510 of the page's largest p_s · max|v_s| per token.
//! Sixteen lanes of tokens, or of components, and four bytes of the other in each: what `vpdpbusd`, `sdot` and tiles take.

// Loops over rows, columns and groups index several arrays of constant size at once.
#![allow(clippy::needless_range_loop)]

mod products;
mod softmax;

use crate::kv::{GROUP_TOKENS, GROUPS, PAGE_TOKENS, PageRow, Quantizer, component_rows, value_chunks};
use crate::matmul::lanes::{Lanes, Line, ROWS};
use crate::simd::{LANES, Lanes as _};
use std::ops::Range;

/// Rows that go against a page together: a tile of a matrix unit.
pub(super) const TILE_ROWS: usize = 16;

/// [`crate::kv::HeadPage::Q8`].
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) k: &'a [Line],
    pub(super) v: &'a [Line],
    pub(super) k_scales: &'a PageRow,
    pub(super) v_scales: &'a PageRow,
    /// Fours of components of a key.
    pub(super) quads: usize,
    /// Sixteens of components of a value.
    pub(super) chunks: usize,
}

/// The queries of a block in bytes.
#[derive(Default)]
pub(super) struct Queries {
    /// `[row][lines]`, padded with zeros.
    bytes: Vec<Line>,
    /// Lines of a row.
    lines: usize,
    totals: Vec<i32>,
    /// c · scale · log2 e.
    factors: Vec<f32>,
}

impl Queries {
    pub(super) fn clear(&mut self, rows: usize, head_dim: usize) {
        self.lines = component_rows(head_dim).div_ceil(4 * ROWS);
        self.bytes.clear();
        self.bytes.resize(rows * self.lines, Line::ZERO);
        self.totals.clear();
        self.factors.clear();
    }

    /// Appends a row.
    #[inline(always)]
    pub(super) fn push(&mut self, q: &[f32], scale: f32) {
        let row = self.totals.len();
        let fit = Quantizer::fit(q);
        let bytes: &mut [i8] = bytemuck::cast_slice_mut(&mut self.bytes[row * self.lines..][..self.lines]);
        for (to, piece) in bytes.as_chunks_mut::<LANES>().0.iter_mut().zip(q.chunks(LANES)) {
            *to = fit.bytes(piece);
        }
        self.totals.push(bytes.iter().map(|&byte| i32::from(byte)).sum());
        self.factors.push(fit.scale * scale * std::f32::consts::LOG2_E);
    }
}

/// Intermediate values of a tile.
#[derive(Default)]
pub(super) struct Room {
    /// Integer sums `[row][group]`.
    scores: Vec<[Line; GROUPS]>,
    /// 64 bytes per row.
    weights: Vec<Line>,
    /// Integer sums `[row][chunk]`.
    products: Vec<Line>,
}

impl Room {
    pub(super) fn fit(&mut self, head_dim: usize) {
        self.scores.resize(TILE_ROWS, [Line::ZERO; GROUPS]);
        self.weights.resize(TILE_ROWS, Line::ZERO);
        self.products.resize(TILE_ROWS * value_chunks(head_dim), Line::ZERO);
    }
}

/// Some rows of a block against one page.
pub(super) struct Tile<'a> {
    pub(super) page: Page<'a>,
    pub(super) queries: &'a Queries,
    /// The first row.
    pub(super) row: usize,
    /// Tokens of the page that each row sees.
    pub(super) seen: &'a [Range<usize>],
    /// Unnormalized results `[row][chunks]`.
    pub(super) out: &'a mut [[f32; LANES]],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [[f32; LANES]],
}

impl Tile<'_> {
    #[inline(always)]
    pub(super) fn step<L: Lanes>(self, l: L, room: &mut Room) {
        let Self { page, queries, row, seen, out, max, sum } = self;
        let (mut start, mut end) = (PAGE_TOKENS, 0);
        for seen in seen.iter().filter(|seen| !seen.is_empty()) {
            start = start.min(seen.start);
            end = end.max(seen.end);
        }
        if start >= end {
            return;
        }
        let rows = seen.len();
        let tile = products::Queries {
            bytes: &queries.bytes[row * queries.lines..][..rows * queries.lines],
            totals: &queries.totals[row..][..rows],
            lines: queries.lines,
        };
        products::scores(l, &page, &tile, &(start / GROUP_TOKENS..end.div_ceil(GROUP_TOKENS)), room);
        let factors = softmax::weigh::<L::Simd>(&page, &queries.factors[row..][..rows], seen, max, sum, room);
        products::values(l, &page, rows, &(start / 4..end.div_ceil(4)), room);
        for (row, out) in out.chunks_exact_mut(page.chunks).enumerate() {
            let (rescale, scale) = (L::Simd::splat(factors.rescale[row]), L::Simd::splat(factors.scale[row]));
            for (to, sums) in out.iter_mut().zip(&room.products[row * page.chunks..]) {
                L::Simd::load(to).mul(rescale).add(L::Simd::load_i32(&sums.0).mul(scale)).store(to);
            }
        }
    }
}
