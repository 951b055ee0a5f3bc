//! The recurrence of gated delta networks: a matrix per head that forgets, and corrects what it answers to a key.

// Loops over chunks of columns index several arrays of constant size at once.
#![allow(clippy::needless_range_loop)]

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp, load_chunks, store_chunks};
use crate::{Cpu, Work};
use std::ops::Range;

/// Values of the state per thread and call below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Arguments of [`gated_delta`]. Head h reads queries and keys of group h / (H/G).
pub struct GatedDelta<'a> {
    /// Normalized and scaled queries `[T, G, K]`.
    pub q: &'a [f32],
    /// Normalized keys `[T, G, K]`.
    pub k: &'a [f32],
    /// G.
    pub groups: usize,
    /// `[T, H, V]`.
    pub v: &'a [f32],
    /// H.
    pub heads: usize,
    /// Logarithms of what is kept of the state, 0 or less `[T, H]`.
    pub g: &'a [f32],
    /// How much of an error is corrected `[T, H]`.
    pub beta: &'a [f32],
    /// S, zeros before a sequence's first position `[H, K, V]`.
    pub state: &'a mut [f32],
    /// Result `[T, H, V]`.
    pub out: &'a mut [f32],
}

/// For every position in turn and every head:
/// S ← exp(g) · S; S ← S + k ⊗ β (v - Sᵀ k); out = Sᵀ q.
///
/// Numerics: in f32; every column of S is its own chain of multiply-adds over k's components in index order, and the decay is
/// taken out of the sum Sᵀ k. Scalar differs from the vector paths by fused multiply-add. Neither the number of threads nor
/// how a sequence is cut into calls shows in a bit.
/// Panics if lengths disagree or H is no multiple of G.
/// Source: Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn gated_delta(cpu: &Cpu, args: GatedDelta<'_>) {
    let GatedDelta { q, k, groups, v, heads, g, beta, state, out } = args;
    assert!(groups > 0 && heads > 0 && heads.is_multiple_of(groups), "heads share groups evenly");
    assert_eq!((q.len(), v.len(), g.len()), (k.len(), out.len(), beta.len()));
    if g.is_empty() {
        assert!(q.is_empty() && v.is_empty(), "positions without a decay");
        return;
    }
    assert!(g.len().is_multiple_of(heads), "a decay per head");
    let t = g.len() / heads;
    let (key_dim, value_dim) = (k.len() / (t * groups), v.len() / g.len());
    assert_eq!((k.len(), v.len()), (t * groups * key_dim, t * heads * value_dim), "whole heads and groups");
    assert_eq!(state.len(), heads * key_dim * value_dim, "a state per head");
    if state.is_empty() {
        return out.fill(0.0);
    }

    let _operator = cpu
        .operator("gated_delta", || Work::elementwise(2 * state.len() + 2 * (q.len() + v.len()), 7 * t * state.len()));
    let (out, state) = (Disjoint::new(out), Disjoint::new(state));
    let per_head = key_dim * value_dim;
    cpu.pool().split(heads, (GRAIN / (t * per_head)).max(1), &|part| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let state = unsafe { state.part(part.start * per_head..part.end * per_head) };
        let inputs = Inputs { q, k, v, g, beta, heads, groups, key_dim, value_dim };
        dispatch(cpu, Recurrence { inputs, part, state, out: &out });
    });
}

/// What all heads read.
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    g: &'a [f32],
    beta: &'a [f32],
    /// H.
    heads: usize,
    /// G.
    groups: usize,
    key_dim: usize,
    value_dim: usize,
}

struct Recurrence<'a> {
    inputs: Inputs<'a>,
    /// Heads to do.
    part: Range<usize>,
    /// Theirs.
    state: &'a mut [f32],
    out: &'a Disjoint<'a, f32>,
}

impl Kernel for Recurrence<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Inputs { q, k, v, g, beta, heads, groups, key_dim, value_dim } = self.inputs;
        for (head, state) in self.part.zip(self.state.chunks_exact_mut(key_dim * value_dim)) {
            for row in (head..g.len()).step_by(heads) {
                let key = (row / heads * groups + head / (heads / groups)) * key_dim;
                let values = row * value_dim..(row + 1) * value_dim;
                // SAFETY: a head is done by one worker, and positions do not overlap.
                #[allow(unsafe_code)]
                let out = unsafe { self.out.part(values.clone()) };
                Step {
                    q: &q[key..key + key_dim],
                    k: &k[key..key + key_dim],
                    v: &v[values],
                    decay: exp(L::splat(g[row])),
                    beta: L::splat(beta[row]),
                }
                .run(state, out);
            }
        }
    }
}

/// One head at one position.
struct Step<'a, L> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: L,
    beta: L,
}

/// Chunks of columns side by side: one chain of multiply-adds waits for itself.
const SIDE: usize = 4;

impl<L: Lanes> Step<'_, L> {
    #[inline(always)]
    fn run(&self, state: &mut [f32], out: &mut [f32]) {
        let width = self.v.len();
        let mut column = 0;
        while column + SIDE * LANES <= width {
            self.columns::<SIDE, true>(state, out, column);
            column += SIDE * LANES;
        }
        while column + LANES <= width {
            self.columns::<1, true>(state, out, column);
            column += LANES;
        }
        if column < width {
            self.columns::<1, false>(state, out, column);
        }
    }

    /// N chunks of columns from `column` on; without `WHOLE`, the columns that are left.
    #[inline(always)]
    fn columns<const N: usize, const WHOLE: bool>(&self, state: &mut [f32], out: &mut [f32], column: usize) {
        let width = self.v.len();
        let mut answers = [L::splat(0.0); N];
        for (&k, row) in self.k.iter().zip(state.chunks_exact(width)) {
            let k = L::splat(k);
            let row: [L; N] = load_chunks::<L, N, WHOLE>(&row[column..]);
            for chunk in 0..N {
                answers[chunk] = k.mul_add(row[chunk], answers[chunk]);
            }
        }
        let mut corrections: [L; N] = load_chunks::<L, N, WHOLE>(&self.v[column..]);
        for chunk in 0..N {
            corrections[chunk] = corrections[chunk].sub(self.decay.mul(answers[chunk])).mul(self.beta);
        }
        let mut results = [L::splat(0.0); N];
        for ((&k, &q), row) in self.k.iter().zip(self.q).zip(state.chunks_exact_mut(width)) {
            let (k, q) = (L::splat(k), L::splat(q));
            let mut new: [L; N] = load_chunks::<L, N, WHOLE>(&row[column..]);
            for chunk in 0..N {
                new[chunk] = k.mul_add(corrections[chunk], new[chunk].mul(self.decay));
                results[chunk] = q.mul_add(new[chunk], results[chunk]);
            }
            store_chunks::<L, N, WHOLE>(new, &mut row[column..]);
        }
        store_chunks::<L, N, WHOLE>(results, &mut out[column..]);
    }
}
