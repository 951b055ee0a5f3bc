//! A block of query rows of one KV head against all pages that any of them sees.

use super::Span;
use super::page::{Bytes, Floats, Halves, Stored, Unpacked};
use super::tile::{TILE_ROWS, Tile};
use crate::disjoint::Disjoint;
use crate::kv::{HeadPage, PAGE_TOKENS, component_rows, value_chunks};
use crate::simd::{Kernel, LANES, Lanes};
use std::cell::RefCell;
use std::ops::Range;

/// What one call of the kernel computes.
pub(super) struct Block<'a> {
    pub(super) span: &'a Span<'a>,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    /// Query heads of the KV head: H/G.
    pub(super) group: usize,
    pub(super) num_attention_heads: usize,
    pub(super) head_dim: usize,
    /// The first position's row in `q` and `out`.
    pub(super) row: usize,
    /// Of the queries, in the sequence.
    pub(super) positions: Range<usize>,
    /// `[ΣT, H, E]`.
    pub(super) q: &'a [f32],
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    /// `[ΣT, H, E]`; this block fills its rows of its heads.
    pub(super) out: &'a Disjoint<'a, f32>,
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Buffers {
    /// Scaled queries `[row][component_rows]`.
    q: Vec<f32>,
    /// Unnormalized results `[row][value_chunks]`.
    out: Vec<[f32; LANES]>,
    /// Largest score so far, per row.
    max: Vec<f32>,
    /// Sum of exponentials by lane (token mod 16), per row.
    sum: Vec<[f32; LANES]>,
    /// The page in f32, when it is stored otherwise.
    page: Unpacked,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // Taken out and put back, because a closure given to `LocalKey` would be compiled without the vector features.
        let mut buffers = BUFFERS.take();
        attend::<L>(&self, &mut buffers);
        BUFFERS.set(buffers);
    }
}

/// Row `i` of the block is head `i % group` of position `positions.start + i / group`.
#[inline(always)]
fn attend<L: Lanes>(block: &Block<'_>, buffers: &mut Buffers) {
    let Block { group, head_dim, .. } = *block;
    let rows = block.positions.len() * group;
    let (components, chunks) = (component_rows(head_dim), value_chunks(head_dim));

    buffers.q.clear();
    buffers.q.resize(rows * components, 0.0);
    for (row, scaled) in buffers.q.chunks_exact_mut(components).enumerate() {
        for (to, x) in scaled.iter_mut().zip(&block.q[block.offset(row)..][..head_dim]) {
            *to = x * block.scale;
        }
    }
    buffers.out.clear();
    buffers.out.resize(rows * chunks, [0.0; LANES]);
    buffers.max.clear();
    buffers.max.resize(rows, f32::NEG_INFINITY);
    buffers.sum.clear();
    buffers.sum.resize(rows, [0.0; LANES]);

    let seen = block.seen(0).start..block.seen(rows - 1).end;
    for page in seen.start / PAGE_TOKENS..seen.end.div_ceil(PAGE_TOKENS) {
        let tokens = within(&seen, page);
        let stored = block.span.cache.head_page(block.layer, page, block.kv_head);
        let Buffers { q, out, max, sum, page: room } = &mut *buffers;
        let rows = Rows { block, page, q, out, max, sum };
        match stored {
            HeadPage::F32 { k, v } => rows.against::<L>(Floats { k, v, components, chunks }),
            HeadPage::F16 { k, v } => {
                rows.against_packed::<L>(Halves { k, v, components, chunks }, &tokens, room);
            }
            HeadPage::Q8 { k, v, k_scales, v_scales } => {
                rows.against_packed::<L>(Bytes { k, v, k_scales, v_scales, components, chunks }, &tokens, room);
            }
        }
    }

    for row in 0..rows {
        let inverse = 1.0 / L::load(&buffers.sum[row]).sum();
        let from = block.offset(row);
        // SAFETY: rows of a block, and blocks, are different (position, head) pairs.
        #[allow(unsafe_code)]
        let out = unsafe { block.out.part(from..from + head_dim) };
        for (to, x) in out.iter_mut().zip(buffers.out[row * chunks..][..chunks].as_flattened()) {
            *to = x * inverse;
        }
    }
}

/// All rows of a block and the page that they look at now.
struct Rows<'a> {
    block: &'a Block<'a>,
    page: usize,
    q: &'a [f32],
    out: &'a mut [[f32; LANES]],
    max: &'a mut [f32],
    sum: &'a mut [[f32; LANES]],
}

/// Up to this many rows read a packed page as it is; more rows have it unpacked first. Decoding 4 heads of 64 components
/// per KV head on AVX-512 goes through 1.6 times as many tokens in the same time when it reads F16 directly.
const DIRECT_ROWS: usize = 4;

impl Rows<'_> {
    #[inline(always)]
    fn against_packed<L: Lanes>(self, stored: impl Stored, tokens: &Range<usize>, room: &mut Unpacked) {
        if self.max.len() <= DIRECT_ROWS {
            self.against::<L>(stored);
        } else {
            let head_dim = self.block.head_dim;
            let unpacked = room.fill::<L>(stored, tokens, component_rows(head_dim), value_chunks(head_dim));
            self.against::<L>(unpacked);
        }
    }

    #[inline(always)]
    fn against<L: Lanes>(self, stored: impl Stored) {
        let (components, chunks) = (component_rows(self.block.head_dim), value_chunks(self.block.head_dim));
        let rows = self.max.len();
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(TILE_ROWS);
            let mut seen = [const { 0..0 }; TILE_ROWS];
            for (index, seen) in seen[..count].iter_mut().enumerate() {
                *seen = within(&self.block.seen(row + index), self.page);
            }
            Tile {
                stored,
                components,
                chunks,
                seen: &seen[..count],
                q: &self.q[row * components..][..count * components],
                out: &mut self.out[row * chunks..][..count * chunks],
                max: &mut self.max[row..][..count],
                sum: &mut self.sum[row..][..count],
            }
            .step::<L>();
            row += count;
        }
    }
}

/// The part of `positions` that lies in a page, counted from its first token; empty at 0 if there is none.
#[inline(always)]
fn within(positions: &Range<usize>, page: usize) -> Range<usize> {
    let first = page * PAGE_TOKENS;
    let start = positions.start.max(first);
    let end = positions.end.min(first + PAGE_TOKENS);
    if start < end { start - first..end - first } else { 0..0 }
}

impl Block<'_> {
    /// Keys that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let end = self.positions.start + row / self.group + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Where a row stands in `q` and `out`.
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        let head = self.kv_head * self.group + row % self.group;
        ((self.row + row / self.group) * self.num_attention_heads + head) * self.head_dim
    }
}
