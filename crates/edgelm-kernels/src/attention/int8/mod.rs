//! Attention over a [`KvDtype::Q8`](crate::KvDtype::Q8) cache in integer arithmetic.
//!
//! Per query row q, against pages of 64 tokens s with keys k̂_s · a_s and values v̂_s · b_s (k̂, v̂ signed bytes):
//!
//! - q is rounded to signed bytes q̂ with one scale c = max|q| / 127.
//! - score_s = (f32(Σ_e q̂_e k̂_s,e) · a_s) · (c · scale · log2 e), a power of two; then cap and bias, both times log2 e.
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

mod matrix;
mod products;
mod softmax;

use super::scores::Shaping;
use super::state::State;
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
    /// Tiles go through matrix registers.
    matrix: bool,
    totals: Vec<i32>,
    /// c · scale · log2 e.
    factors: Vec<f32>,
}

impl Queries {
    /// Room for some rows.
    pub(super) fn clear<L: Lanes>(&mut self, rows: usize, head_dim: usize) {
        self.matrix = matrix::fits::<L>(component_rows(head_dim) / 4, rows);
        self.lines = component_rows(head_dim).div_ceil(4 * ROWS);
        self.bytes.clear();
        // Matrix registers read whole tiles.
        self.bytes.resize(rows.next_multiple_of(TILE_ROWS) * self.lines, Line::ZERO);
        self.totals.clear();
        self.factors.clear();
    }

    /// Before the first tile.
    pub(super) fn begin<L: Lanes>(&self, l: L) {
        if self.matrix {
            l.matrix_begin();
        }
    }

    /// After the last tile.
    pub(super) fn end<L: Lanes>(&self, l: L) {
        if self.matrix {
            l.matrix_end();
        }
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

/// Intermediate values of a page, tile by tile. All tiles take a step before any takes the next: what matrix registers
/// write or read reaches vector registers, and the other way round, only through the cache, and that takes its time.
#[derive(Default)]
pub(super) struct Room {
    /// Integer sums `[tile][row][group]`.
    scores: Vec<[[Line; GROUPS]; TILE_ROWS]>,
    weights: Vec<Weights>,
    /// Integer sums `[row][chunk]`.
    products: Vec<Line>,
}

impl Room {
    /// For some rows.
    pub(super) fn fit(&mut self, rows: usize, head_dim: usize) {
        let tiles = rows.div_ceil(TILE_ROWS);
        if self.weights.len() < tiles {
            self.scores.resize(tiles, [[Line::ZERO; GROUPS]; TILE_ROWS]);
            self.weights.resize_with(tiles, Weights::default);
        }
        let products = tiles * TILE_ROWS * value_chunks(head_dim);
        if self.products.len() < products {
            self.products.resize(products, Line::ZERO);
        }
    }
}

/// What a tile makes of a page's values.
struct Weights {
    /// 64 bytes per row.
    bytes: [Line; TILE_ROWS],
    /// Of each row: what its results so far are multiplied by.
    rescale: [f32; TILE_ROWS],
    /// Of each row: what a weight of 1 is worth.
    scale: [f32; TILE_ROWS],
    /// Fours of tokens that any row sees.
    quads: Range<usize>,
}

impl Default for Weights {
    fn default() -> Self {
        Self { bytes: [Line::ZERO; TILE_ROWS], rescale: [0.0; TILE_ROWS], scale: [0.0; TILE_ROWS], quads: 0..0 }
    }
}

/// First step: scores of the rows `row..row + seen.len()`. `seen` are the tokens of the page that each of them sees.
#[inline(always)]
pub(super) fn score<L: Lanes>(
    l: L,
    page: &Page<'_>,
    queries: &Queries,
    row: usize,
    seen: &[Range<usize>],
    room: &mut Room,
) {
    let (mut start, mut end) = (PAGE_TOKENS, 0);
    for seen in seen.iter().filter(|seen| !seen.is_empty()) {
        start = start.min(seen.start);
        end = end.max(seen.end);
    }
    let tile = row / TILE_ROWS;
    room.weights[tile].quads = start / 4..end.div_ceil(4);
    if start >= end {
        return;
    }
    let rows = products::Queries {
        bytes: &queries.bytes[row * queries.lines..],
        totals: &queries.totals[row..][..seen.len()],
        lines: queries.lines,
    };
    if queries.matrix {
        matrix::scores(l, page, &rows, &mut room.scores[tile]);
    } else {
        products::scores(l, page, &rows, &(start / GROUP_TOKENS..end.div_ceil(GROUP_TOKENS)), &mut room.scores[tile]);
    }
}

/// What the rows of a tile see of a page.
pub(super) struct Seen<'a> {
    /// Of each row.
    pub(super) tokens: &'a [Range<usize>],
    /// Position of the page's first token.
    pub(super) first: usize,
    /// Of each row, where scores are more than products.
    pub(super) shaping: Option<&'a [Shaping]>,
}

/// Second step: weights from scores, and the rows' new maxima and sums.
#[inline(always)]
pub(super) fn weigh<L: Lanes>(
    page: &Page<'_>,
    queries: &Queries,
    row: usize,
    seen: Seen<'_>,
    state: &mut State<'_>,
    room: &mut Room,
) {
    let tile = row / TILE_ROWS;
    if room.weights[tile].quads.is_empty() {
        return;
    }
    let rows = row..row + seen.tokens.len();
    let (max, sum) = (&mut state.max[rows.clone()], &mut state.sum[rows.clone()]);
    let factors = &queries.factors[rows];
    softmax::weigh::<L::Simd>(page, factors, &seen, &room.scores[tile], max, sum, &mut room.weights[tile]);
}

/// Third step: integer sums of `count` rows from `row` on.
#[inline(always)]
pub(super) fn multiply<L: Lanes>(l: L, page: &Page<'_>, queries: &Queries, row: usize, count: usize, room: &mut Room) {
    let weights = &room.weights[row / TILE_ROWS];
    let products = &mut room.products[row * page.chunks..];
    if weights.quads.is_empty() {
        return;
    }
    if queries.matrix {
        matrix::values(l, page, weights, products);
    } else {
        products::values(l, page, count, weights, products);
    }
}

/// Last step: the results of `count` rows from `row` on.
#[inline(always)]
pub(super) fn add<L: Lanes>(page: &Page<'_>, row: usize, count: usize, state: &mut State<'_>, room: &Room) {
    let weights = &room.weights[row / TILE_ROWS];
    if weights.quads.is_empty() {
        return;
    }
    let part = row * page.chunks..(row + count) * page.chunks;
    let outs = state.out[part.clone()].chunks_exact_mut(page.chunks);
    for (index, (out, sums)) in outs.zip(room.products[part].chunks_exact(page.chunks)).enumerate() {
        let (rescale, scale) = (L::Simd::splat(weights.rescale[index]), L::Simd::splat(weights.scale[index]));
        for (to, sums) in out.iter_mut().zip(sums) {
            L::Simd::load(to).mul(rescale).add(L::Simd::load_i32(&sums.0).mul(scale)).store(to);
        }
    }
}
