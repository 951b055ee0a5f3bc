//! Causal attention over the KV cache: one fused pass, online softmax, f32 sums.

use crate::{Cpu, KvCache};

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
    /// Multiplies q·k, usually 1/sqrt(E).
    pub scale: f32,
    /// A position p sees p - window + 1 ..= p; `None` = everything up to p.
    pub window: Option<usize>,
    /// Result `[ΣT, H, E]`.
    pub out: &'a mut [f32],
}

impl Cpu {
    /// out[t, h] = Σ_s softmax_s(scale · q[t, h] · k[s, g]) v[s, g], s ≤ position of t, inside the window; g = h / (H/G).
    pub fn attention(&self, args: Attention<'_>) {
        let _ = args;
        todo!()
    }
}
