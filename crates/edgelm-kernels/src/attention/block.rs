//! A block of query rows of one KV head against the pages that any of them sees.

use super::Span;
use super::int4::Expanded;
use super::int8::{self, Queries};
use super::page::{Floats, Halves, Stored, Unpacked};
use super::plan::Plan;
use super::scores::Shaping;
use super::state::{Base, State};
use super::tile::{self, Tile};
use crate::KvDtype;
use crate::kv::{HeadPage, PAGE_TOKENS, component_rows, rotate, value_chunks};
use crate::matmul::lanes::{Job, Lanes, LanesVisitor, Line};
use crate::simd::LANES;
use std::cell::RefCell;
use std::ops::Range;

/// Pages whose keys add up on their own before they are joined with those before: the part of a long sequence that one
/// thread takes when there are fewer blocks than threads. Counted from position 0, so that everybody cuts at the same
/// places. Joining costs one part in forty of the work on eight pages.
pub(super) const SEGMENT_PAGES: usize = 8;

/// Some positions of a sequence, all query heads of one KV head.
pub(super) struct Block<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) span: &'a Span<'a>,
    pub(super) kv_head: usize,
    /// The first position's row in `q` and `out`.
    pub(super) row: usize,
    /// Of the queries, in the sequence.
    pub(super) positions: Range<usize>,
}

/// A block, or a step of it.
pub(super) enum Task<'a> {
    /// From the queries to the result.
    Whole(Block<'a>),
    /// The state of one segment, left in `state`.
    Segment { block: Block<'a>, segment: usize, state: &'a mut [[f32; LANES]] },
    /// The result from the states of all segments, in order.
    Join { block: Block<'a>, states: &'a mut [[f32; LANES]] },
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Buffers {
    /// Scaled queries `[row][component_rows]`.
    q: Vec<f32>,
    /// The same for int8 caches.
    queries: Queries,
    /// States of everything so far and of the segment.
    states: Vec<[f32; LANES]>,
    /// The page in f32, when it is stored otherwise.
    page: Unpacked,
    room: int8::Room,
    /// A page of int4 as one of int8.
    nibbles: Expanded,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl LanesVisitor for Task<'_> {
    type Output = ();

    /// Enters the instruction set step by step: a step is a page or more, and one function of everything at once took the
    /// compiler minutes.
    fn visit<L: Lanes>(self, l: L) {
        let mut buffers = BUFFERS.take();
        match self {
            Self::Whole(block) => {
                block.begin(l, &mut buffers);
                block.whole(l, &mut buffers);
                buffers.queries.end(l);
            }
            Self::Segment { block, segment, state } => {
                block.begin(l, &mut buffers);
                let mut state = State::new(state, block.rows(), value_chunks(block.plan.head_dim));
                block.walk(l, segment, &mut state, &mut buffers);
                buffers.queries.end(l);
            }
            Self::Join { block, states } => {
                let len = block.state_len();
                let mut total = block.total(&mut buffers.states);
                for state in states.chunks_exact_mut(len) {
                    let state = State::new(state, block.rows(), value_chunks(block.plan.head_dim));
                    l.vector().enter(Join { total: &mut total, state: &state, base: block.base() });
                }
                l.vector().enter(Finish { block: &block, total: &total });
            }
        }
        BUFFERS.set(buffers);
    }
}

/// Queries as the cache's arithmetic takes them.
struct Prepare<'a>(&'a Block<'a>, &'a mut Buffers);

impl<L: Lanes> Job<L> for Prepare<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: L) {
        self.0.prepare::<L>(self.1);
    }
}

/// Adds the state of a segment to those before.
struct Join<'a, 'b> {
    total: &'a mut State<'b>,
    state: &'a State<'b>,
    base: Base,
}

impl<L: Lanes> Job<L> for Join<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: L) {
        self.total.join::<L::Simd>(self.state, self.base);
    }
}

/// The result from the state of everything.
struct Finish<'a> {
    block: &'a Block<'a>,
    total: &'a State<'a>,
}

impl<L: Lanes> Job<L> for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: L) {
        self.block.finish::<L>(self.total);
    }
}

/// A page of F16 in f32.
struct Unpack<'a> {
    halves: Halves<'a>,
    tokens: &'a Range<usize>,
    room: &'a mut Unpacked,
}

impl<'a, L: Lanes> Job<L> for Unpack<'a> {
    type Output = Floats<'a>;
    #[inline(always)]
    fn run(self, _: L) -> Floats<'a> {
        let Halves { components, chunks, .. } = self.halves;
        self.room.fill::<L::Simd>(self.halves, self.tokens, components, chunks)
    }
}

/// All rows against a page of floats.
struct Against<'a, 'b, S> {
    block: &'a Block<'a>,
    page: usize,
    stored: S,
    q: &'a [f32],
    state: &'a mut State<'b>,
}

impl<L: Lanes, S: Stored> Job<L> for Against<'_, '_, S> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: L) {
        self.block.against::<L::Simd>(self.page, self.stored, self.q, self.state);
    }
}

/// A page of int4 as one of int8.
struct Expand<'a> {
    k: &'a [Line],
    v: &'a [Line],
    quads: usize,
    chunks: usize,
    room: &'a mut Expanded,
}

impl<L: Lanes> Job<L> for Expand<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: L) {
        self.room.fill(self.k, self.v, self.quads, self.chunks);
    }
}

/// All rows against a page of int8.
struct AgainstBytes<'a, 'b> {
    block: &'a Block<'a>,
    page: usize,
    bytes: int8::Page<'a>,
    buffers: &'a mut Buffers,
    state: &'a mut State<'b>,
}

impl<L: Lanes> Job<L> for AgainstBytes<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self, l: L) {
        self.block.against_bytes(l, self.page, self.bytes, self.buffers, self.state);
    }
}

/// Row `i` of the block is head `i % group` of position `positions.start + i / group`.
impl Block<'_> {
    fn rows(&self) -> usize {
        self.positions.len() * self.plan.group
    }

    /// Vectors of the state of all rows.
    pub(super) fn state_len(&self) -> usize {
        State::len(self.rows(), value_chunks(self.plan.head_dim))
    }

    fn base(&self) -> Base {
        match self.span.cache.dtype() {
            KvDtype::F32 | KvDtype::F16 => Base::E,
            KvDtype::Q8 | KvDtype::Q4 => Base::Two,
        }
    }

    /// Keys that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let position = self.positions.start + row / self.plan.group;
        self.plan.seen(&(position..position + 1))
    }

    /// Query head of a row.
    #[inline(always)]
    fn head(&self, row: usize) -> usize {
        self.kv_head * self.plan.group + row % self.plan.group
    }

    /// Of N rows from `row` on, where scores are more than products. Those beyond the last are of no use.
    #[inline(always)]
    fn shaping<const N: usize>(&self, row: usize) -> Option<[Shaping; N]> {
        let of_row = |row: usize| {
            let position = self.positions.start + row / self.plan.group;
            self.plan.scores.shaping(self.head(row), position, self.base())
        };
        self.plan.scores.is_shaped().then(|| std::array::from_fn(|index| of_row(row + index)))
    }

    /// Where a row stands in `q` and `out`.
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        let Plan { kv_heads, group, head_dim, .. } = *self.plan;
        ((self.row + row / group) * kv_heads * group + self.head(row)) * head_dim
    }

    fn begin<L: Lanes>(&self, l: L, buffers: &mut Buffers) {
        l.enter(Prepare(self, buffers));
        buffers.queries.begin(l);
    }

    #[inline(always)]
    fn prepare<L: Lanes>(&self, buffers: &mut Buffers) {
        let head_dim = self.plan.head_dim;
        let dtype = self.span.cache.dtype();
        if let KvDtype::Q8 | KvDtype::Q4 = dtype {
            buffers.room.fit(self.rows(), head_dim);
            buffers.queries.clear::<L>(self.rows(), head_dim);
            for row in 0..self.rows() {
                let mut q = &self.plan.q[self.offset(row)..][..head_dim];
                if dtype == KvDtype::Q4 {
                    buffers.q.clear();
                    buffers.q.extend_from_slice(q);
                    rotate(&mut buffers.q);
                    q = &buffers.q;
                }
                buffers.queries.push(q, self.plan.scores.scale);
            }
            return;
        }
        buffers.queries.clear::<L>(0, head_dim);
        let components = component_rows(head_dim);
        buffers.q.clear();
        buffers.q.resize(self.rows() * components, 0.0);
        for (row, scaled) in buffers.q.chunks_exact_mut(components).enumerate() {
            for (to, x) in scaled.iter_mut().zip(&self.plan.q[self.offset(row)..][..head_dim]) {
                *to = x * self.plan.scores.scale;
            }
        }
    }

    fn whole<L: Lanes>(&self, l: L, buffers: &mut Buffers) {
        let (rows, chunks, len) = (self.rows(), value_chunks(self.plan.head_dim), self.state_len());
        let mut states = std::mem::take(&mut buffers.states);
        if states.len() < 2 * len {
            states.resize(2 * len, [0.0; LANES]);
        }
        let (total, segment_state) = states.split_at_mut(len);
        let mut total = State::new(total, rows, chunks);
        let mut state = State::new(&mut segment_state[..len], rows, chunks);
        self.start(&mut total);
        for segment in segments(&self.plan.seen(&self.positions)) {
            self.walk(l, segment, &mut state, buffers);
            l.vector().enter(Join { total: &mut total, state: &state, base: self.base() });
        }
        l.vector().enter(Finish { block: self, total: &total });
        buffers.states = states;
    }

    /// An empty state in the front of a buffer.
    fn total<'b>(&self, states: &'b mut Vec<[f32; LANES]>) -> State<'b> {
        let len = self.state_len();
        if states.len() < len {
            states.resize(len, [0.0; LANES]);
        }
        let mut total = State::new(&mut states[..len], self.rows(), value_chunks(self.plan.head_dim));
        self.start(&mut total);
        total
    }

    /// The state before the first key.
    #[inline(always)]
    fn start(&self, total: &mut State<'_>) {
        total.clear();
        for row in 0..self.rows() {
            if let Some(score) = self.plan.scores.sink(self.head(row), self.base()) {
                total.sink(row, score);
            }
        }
    }

    #[inline(always)]
    fn finish<L: Lanes>(&self, total: &State<'_>) {
        for row in 0..self.rows() {
            let from = self.offset(row);
            // SAFETY: rows of a block, and blocks, are different (position, head) pairs.
            #[allow(unsafe_code)]
            unsafe {
                total.finish::<L::Simd>(row, &self.plan.out, from..from + self.plan.head_dim);
                if self.span.cache.dtype() == KvDtype::Q4 {
                    rotate(self.plan.out.part(from..from + self.plan.head_dim));
                }
            }
        }
    }

    /// The state of the keys of one segment.
    fn walk<L: Lanes>(&self, l: L, segment: usize, state: &mut State<'_>, buffers: &mut Buffers) {
        let (components, chunks) = (component_rows(self.plan.head_dim), value_chunks(self.plan.head_dim));
        state.clear();
        let seen = self.plan.seen(&self.positions);
        let pages = seen.start / PAGE_TOKENS..seen.end.div_ceil(PAGE_TOKENS);
        let first = segment * SEGMENT_PAGES;
        for page in pages.start.max(first)..pages.end.min(first + SEGMENT_PAGES) {
            let tokens = within(&seen, page);
            match self.span.cache.head_page(self.plan.layer, page, self.kv_head) {
                HeadPage::F32 { k, v } => {
                    let stored = Floats { k, v, components, chunks };
                    l.vector().enter(Against { block: self, page, stored, q: &buffers.q, state });
                }
                HeadPage::F16 { k, v } => {
                    let stored = Halves { k, v, components, chunks };
                    if self.rows() <= DIRECT_ROWS {
                        l.vector().enter(Against { block: self, page, stored, q: &buffers.q, state });
                    } else {
                        let unpack = Unpack { halves: stored, tokens: &tokens, room: &mut buffers.page };
                        let stored = l.vector().enter(unpack);
                        l.vector().enter(Against { block: self, page, stored, q: &buffers.q, state });
                    }
                }
                HeadPage::Q8 { k, v, k_scales, v_scales } => {
                    let bytes = int8::Page { k, v, k_scales, v_scales, quads: components / 4, chunks };
                    l.enter(AgainstBytes { block: self, page, bytes, buffers, state });
                }
                HeadPage::Q4 { k, v, k_scales, v_scales } => {
                    let mut room = std::mem::take(&mut buffers.nibbles);
                    l.vector().enter(Expand { k, v, quads: components / 4, chunks, room: &mut room });
                    let (k, v) = (&*room.k, &*room.v);
                    let bytes = int8::Page { k, v, k_scales, v_scales, quads: components / 4, chunks };
                    l.enter(AgainstBytes { block: self, page, bytes, buffers, state });
                    buffers.nibbles = room;
                }
            }
        }
    }

    #[inline(always)]
    fn against<S: crate::simd::Lanes>(&self, page: usize, stored: impl Stored, q: &[f32], state: &mut State<'_>) {
        let (components, chunks) = (component_rows(self.plan.head_dim), value_chunks(self.plan.head_dim));
        for row in (0..self.rows()).step_by(tile::TILE_ROWS) {
            let count = (self.rows() - row).min(tile::TILE_ROWS);
            Tile {
                stored,
                components,
                chunks,
                seen: &self.seen_within::<{ tile::TILE_ROWS }>(row, page)[..count],
                first: page * PAGE_TOKENS,
                shaping: self.shaping::<{ tile::TILE_ROWS }>(row).as_ref().map(|rows| &rows[..count]),
                q: &q[row * components..][..count * components],
                out: &mut state.out[row * chunks..][..count * chunks],
                max: &mut state.max[row..][..count],
                sum: &mut state.sum[row..][..count],
            }
            .step::<S>();
        }
    }

    #[inline(always)]
    fn against_bytes<L: Lanes>(
        &self,
        l: L,
        page: usize,
        bytes: int8::Page<'_>,
        buffers: &mut Buffers,
        state: &mut State<'_>,
    ) {
        let Buffers { queries, room, .. } = buffers;
        let whole = page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS;
        let (first, last) = (self.seen(0), self.seen(self.rows() - 1));
        let all_see_all = last.start <= whole.start && whole.end <= first.end;
        let tiles = (0..self.rows()).step_by(int8::TILE_ROWS);
        let count = |row: usize| (self.rows() - row).min(int8::TILE_ROWS);
        let mut some = [const { 0..0 }; int8::TILE_ROWS];
        for row in tiles.clone() {
            let seen = self.seen_by_tile(row, page, all_see_all, &mut some);
            int8::score(l, &bytes, queries, row, seen, room);
        }
        for row in tiles.clone() {
            let tokens = self.seen_by_tile(row, page, all_see_all, &mut some);
            let shaping = self.shaping::<{ int8::TILE_ROWS }>(row);
            let shaping = shaping.as_ref().map(|rows| &rows[..tokens.len()]);
            let seen = int8::Seen { tokens, first: whole.start, shaping };
            int8::weigh::<L>(&bytes, queries, row, seen, state, room);
        }
        for row in tiles.clone() {
            int8::multiply(l, &bytes, queries, row, count(row), room);
        }
        for row in tiles {
            int8::add::<L>(&bytes, row, count(row), state, room);
        }
    }

    /// Tokens of a page that the rows of a tile see; `some` is room for it where they differ.
    #[inline(always)]
    fn seen_by_tile<'s>(
        &self,
        row: usize,
        page: usize,
        whole: bool,
        some: &'s mut [Range<usize>; int8::TILE_ROWS],
    ) -> &'s [Range<usize>] {
        let count = (self.rows() - row).min(int8::TILE_ROWS);
        if whole {
            return &const { [const { 0..PAGE_TOKENS }; int8::TILE_ROWS] }[..count];
        }
        *some = self.seen_within(row, page);
        &some[..count]
    }

    /// Tokens of a page that N rows from `row` on see; nothing for rows beyond the last.
    #[inline(always)]
    fn seen_within<const N: usize>(&self, row: usize, page: usize) -> [Range<usize>; N] {
        let mut seen = [const { 0..0 }; N];
        for (row, seen) in (row..self.rows()).zip(&mut seen) {
            *seen = within(&self.seen(row), page);
        }
        seen
    }
}

/// Up to this many rows read a page of F16 as it is; more rows have it unpacked first. Decoding 4 heads of 64 components
/// per KV head on AVX-512 goes through 1.6 times as many tokens in the same time when it reads F16 directly.
const DIRECT_ROWS: usize = 4;

/// Segments that positions lie in.
pub(super) fn segments(seen: &Range<usize>) -> Range<usize> {
    const TOKENS: usize = SEGMENT_PAGES * PAGE_TOKENS;
    seen.start / TOKENS..seen.end.div_ceil(TOKENS)
}

/// The part of `positions` that lies in a page, counted from its first token; empty at 0 if there is none.
#[inline(always)]
fn within(positions: &Range<usize>, page: usize) -> Range<usize> {
    let first = page * PAGE_TOKENS;
    let start = positions.start.max(first);
    let end = positions.end.min(first + PAGE_TOKENS);
    if start < end { start - first..end - first } else { 0..0 }
}
