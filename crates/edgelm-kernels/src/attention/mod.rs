//! Causal attention over the KV cache: one fused pass, online softmax, f32 sums.
//!
//! The unit of work is a block of query rows of one sequence that share a KV head: all H/G query heads of it, several
//! positions. Blocks are independent, and nothing that a row computes depends on which rows stand beside it: keys are
//! taken page by page from absolute position 0, each page is one step of the online softmax, segments of a fixed number
//! of pages are joined in order, and a page or a key that a row does not see leaves its state as it was, bit for bit. So
//! the result depends neither on the number of threads nor on the batch nor on how a prompt was cut into chunks.

mod block;
mod int4;
mod int8;
mod page;
mod plan;
mod scores;
mod state;
#[cfg(test)]
mod tests;
mod tile;

pub use scores::{Alibi, Scores};

use crate::disjoint::Disjoint;
use crate::{Cpu, KvCache};
use plan::Plan;

/// Rows of the batch that belong to one sequence.
pub struct Span<'a> {
    /// The sequence's cache; already holds K and V of these rows.
    pub cache: &'a KvCache,
    /// Position of the first row.
    pub start: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Arguments of one layer's attention.
pub struct Attention<'a> {
    /// Sequences, in the order of their rows in `q`.
    pub spans: &'a [Span<'a>],
    /// Layer of the caches to read.
    pub layer: usize,
    /// H (a multiple of the cache's G).
    pub num_attention_heads: usize,
    /// Rotated queries `[ΣT, H, E]`.
    pub q: &'a [f32],
    /// What the softmax sees of q·k.
    pub scores: Scores<'a>,
    /// A position p sees p - window + 1 ..= p; `None` = everything up to p.
    pub window: Option<usize>,
    /// Result `[ΣT, H, E]`.
    pub out: &'a mut [f32],
}

/// Query rows of a block: enough that unpacking a page to f32 costs little beside using it, few enough that queries,
/// sums and a page stay in the first two cache levels.
const BLOCK_ROWS: usize = 64;

impl Cpu {
    /// out[t, h] = Σ_s softmax_s(scale · q[t, h] · k[s, g]) v[s, g], s ≤ position of t, inside the window; g = h / (H/G).
    /// [`Scores`] tells what else scores may go through.
    ///
    /// Shapes: `q`, `out` [ΣT, H, E] over the spans in order; each cache holds `start + rows` positions or more of `layer`.
    /// Numerics: F32 and F16 caches in f32: the query is multiplied by `scale` first; q·k sums components in index order;
    /// exponentials within 1 ULP; values add in order of position, page by page; scalar differs from AVX2 and AVX-512 by
    /// fused multiply-add only. Q8 caches with integer products, see [`int8`], the same bits on every instruction set; Q4 caches
    /// likewise, with queries rotated as keys are, and the result rotated back (see [`crate::kv`]).
    /// Each row's bits depend only on its query and the keys and values it sees, not on threads, batch or chunks.
    /// Panics if lengths or shapes disagree, H is no multiple of G, or the window or the soft cap is 0.
    /// Source: online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867; blocks of queries against blocks of keys,
    /// Dao et al. 2022, arXiv:2205.14135.
    pub fn attention(&self, args: Attention<'_>) {
        let Attention { spans, layer, num_attention_heads, q, scores, window, out } = args;
        let Some(first) = spans.first() else {
            assert!(q.is_empty() && out.is_empty(), "rows without a span");
            return;
        };
        let shape = first.cache.shape(layer);
        let (kv_heads, head_dim) = (shape.num_key_value_heads, shape.head_dim);
        assert_eq!(num_attention_heads % kv_heads, 0, "query heads share KV heads evenly");
        scores.check(num_attention_heads);
        assert_ne!(window, Some(0), "a window includes its own position");
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        assert_eq!(q.len(), rows * num_attention_heads * head_dim, "queries [ΣT, H, E]");
        assert_eq!(out.len(), q.len(), "result [ΣT, H, E]");
        for span in spans {
            assert_eq!(span.cache.shape(layer), shape, "one shape for all spans");
            assert!(span.start + span.rows <= span.cache.layer_len(layer), "the cache lacks these positions");
        }

        let _operator = self.operator("attention", || work_of(spans, layer, num_attention_heads, window));
        let group = num_attention_heads / kv_heads;
        let positions = (BLOCK_ROWS / group).max(1);
        let out = Disjoint::new(out);
        Plan { spans, layer, kv_heads, group, head_dim, positions, q, scores, window, out }.run(self);
    }
}

/// For traces: the keys and values read, and two products over the positions that each row sees.
fn work_of(spans: &[Span<'_>], layer: usize, num_attention_heads: usize, window: Option<usize>) -> crate::Work {
    let mut work = crate::Work::default();
    for span in spans {
        let shape = span.cache.shape(layer);
        let seen = |position: usize| window.map_or(position + 1, |window| window.min(position + 1));
        let positions = span.start..span.start + span.rows;
        let held = positions.end - window.map_or(0, |window| (span.start + 1).saturating_sub(window));
        work.bytes += (held * KvCache::bytes_per_token(&[shape], span.cache.dtype())) as u64;
        work.operations += (4 * num_attention_heads * shape.head_dim * positions.map(seen).sum::<usize>()) as u64;
    }
    work
}
