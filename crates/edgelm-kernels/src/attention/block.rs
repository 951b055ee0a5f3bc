//! A block of query rows of one KV head against all pages that any of them sees.

use super::Span;
use super::page::{Unpacked, unpack};
use super::tile::{TILE_ROWS, Tile};
use crate::disjoint::Disjoint;
use crate::kv::{PAGE_TOKENS, component_rows, value_chunks};
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
        let (k, v) = unpack::<L>(stored, &tokens, components, chunks, &mut buffers.page);
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(TILE_ROWS);
            let mut seen = [const { 0..0 }; TILE_ROWS];
            for (index, seen) in seen[..count].iter_mut().enumerate() {
                *seen = within(&block.seen(row + index), page);
            }
            Tile {
                k,
                v,
                components,
                chunks,
                seen: &seen[..count],
                q: &buffers.q[row * components..][..count * components],
                out: &mut buffers.out[row * chunks..][..count * chunks],
                max: &mut buffers.max[row..][..count],
                sum: &mut buffers.sum[row..][..count],
            }
            .step::<L>();
            row += count;
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
