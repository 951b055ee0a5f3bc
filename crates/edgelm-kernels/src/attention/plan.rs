//! What one call computes, cut into blocks and handed to threads.

use super::block::{Block, Task, segments};
use super::{Scores, Span};
use crate::Cpu;
use crate::disjoint::Disjoint;
use crate::matmul::lanes::Family;
use crate::simd::LANES;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below this many multiply-adds one thread is done before a second one has woken up.
const PARALLEL_WORK: usize = 1 << 17;

/// One layer's attention.
pub(super) struct Plan<'a> {
    pub(super) spans: &'a [Span<'a>],
    pub(super) layer: usize,
    pub(super) kv_heads: usize,
    /// Query heads of a KV head: H/G.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// Positions of a block.
    pub(super) positions: usize,
    /// `[ΣT, H, E]`.
    pub(super) q: &'a [f32],
    pub(super) scores: Scores<'a>,
    pub(super) window: Option<usize>,
    /// `[ΣT, H, E]`.
    pub(super) out: Disjoint<'a, f32>,
}

impl Plan<'_> {
    /// Keys that positions see, all together.
    #[inline(always)]
    pub(super) fn seen(&self, positions: &Range<usize>) -> Range<usize> {
        self.window.map_or(0, |window| (positions.start + 1).saturating_sub(window))..positions.end
    }

    fn blocks_of(&self, span: &Span<'_>) -> usize {
        span.rows.div_ceil(self.positions) * self.kv_heads
    }

    fn block(&self, mut index: usize) -> Block<'_> {
        let mut row = 0;
        for span in self.spans {
            if index < self.blocks_of(span) {
                // Late rows see the most keys; they go first so that no thread is left alone with one at the end.
                let from = (span.rows.div_ceil(self.positions) - 1 - index / self.kv_heads) * self.positions;
                let positions = span.start + from..span.start + span.rows.min(from + self.positions);
                return Block { plan: self, span, kv_head: index % self.kv_heads, row: row + from, positions };
            }
            index -= self.blocks_of(span);
            row += span.rows;
        }
        unreachable!("an index below the number of blocks")
    }

    pub(super) fn run(&self, cpu: &Cpu) {
        let family = Family::of(cpu.isa());
        let blocks: usize = self.spans.iter().map(|span| self.blocks_of(span)).sum();
        let whole = |index| family.visit(Task::Whole(self.block(index)));
        let seen = |span: &Span<'_>| span.rows * self.seen(&(span.start..span.start + span.rows)).len();
        let keys: usize = self.spans.iter().map(seen).sum();
        if cpu.threads() == 1 || keys * self.kv_heads * self.group * self.head_dim * 2 < PARALLEL_WORK {
            return (0..blocks).for_each(whole);
        }
        if blocks < 2 * cpu.threads() && !blocks.is_multiple_of(cpu.threads()) {
            return self.in_segments(cpu, family, blocks);
        }
        let next = AtomicUsize::new(0);
        cpu.pool().run(&|_worker| {
            while let Some(index) = take(&next, blocks) {
                whole(index);
            }
        });
    }

    /// A few blocks for many threads: segments go to whoever is free, and who finishes the last one of a block joins them.
    fn in_segments(&self, cpu: &Cpu, family: Family, blocks: usize) {
        let Splits { mut states, mut remaining } = SPLITS.take();
        remaining.clear();
        let (mut tasks, mut len) = (0, 0);
        for block in (0..blocks).map(|index| self.block(index)) {
            let count = segments(&self.seen(&block.positions)).len();
            remaining.push(AtomicUsize::new(count));
            tasks += count;
            len += count * block.state_len();
        }
        if states.len() < len {
            states.resize(len, [0.0; LANES]);
        }
        let shared = Disjoint::new(&mut states[..len]);
        let next = AtomicUsize::new(0);
        cpu.pool().run(&|_worker| {
            while let Some(mut task) = take(&next, tasks) {
                let mut from = 0;
                for (index, remaining) in remaining.iter().enumerate() {
                    let block = self.block(index);
                    let (segments, len) = (segments(&self.seen(&block.positions)), block.state_len());
                    if task >= segments.len() {
                        task -= segments.len();
                        from += segments.len() * len;
                        continue;
                    }
                    // SAFETY: each segment of each block has its own place and is taken once.
                    #[allow(unsafe_code)]
                    let state = unsafe { shared.part(from + task * len..from + (task + 1) * len) };
                    family.visit(Task::Segment { block, segment: segments.start + task, state });
                    if remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                        // SAFETY: all segments of the block are finished, and only one thread sees the last one go.
                        #[allow(unsafe_code)]
                        let states = unsafe { shared.part(from..from + segments.len() * len) };
                        family.visit(Task::Join { block: self.block(index), states });
                    }
                    break;
                }
            }
        });
        SPLITS.set(Splits { states, remaining });
    }
}

/// The next of `len` tasks.
fn take(next: &AtomicUsize, len: usize) -> Option<usize> {
    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&index| index < len)
}

/// Buffers of the calling thread, kept between calls.
#[derive(Default)]
struct Splits {
    /// Of the segments, block by block.
    states: Vec<[f32; LANES]>,
    /// Segments of a block that are not finished.
    remaining: Vec<AtomicUsize>,
}

thread_local! {
    static SPLITS: RefCell<Splits> = RefCell::default();
}
