//! The recurrence of Mamba-2: a state per head that decays and takes in each position at a rate that the position chooses.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp, load_partial, softplus, store_partial};
use crate::{Cpu, Work};
use std::ops::Range;

/// Values of the state per thread and call below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Arguments of [`selective_scan`]. Head h reads B and C of group h / (H/G).
pub struct SelectiveScan<'a> {
    /// `[T, H, P]`.
    pub x: &'a [f32],
    /// Time steps before bias and softplus `[T, H]`.
    pub dt: &'a [f32],
    /// B, what goes into the state `[T, G, N]`.
    pub b: &'a [f32],
    /// C, what is read from it `[T, G, N]`.
    pub c: &'a [f32],
    /// G.
    pub groups: usize,
    /// A, negative: -exp(A_log) `[H]`.
    pub a: &'a [f32],
    /// D, the way past the state `[H]`.
    pub d: &'a [f32],
    /// `[H]`.
    pub dt_bias: &'a [f32],
    /// Least and largest time step.
    pub dt_limit: (f32, f32),
    /// h, zeros before a sequence's first position `[H, P, N]`.
    pub state: &'a mut [f32],
    /// Result `[T, H, P]`.
    pub out: &'a mut [f32],
}

/// For every position in turn and every head, with dt = clamp(softplus(dt + dt_bias)):
/// h[p, n] ← exp(dt · A) · h[p, n] + dt · x[p] · B[n]; out[p] = Σ_n h[p, n] · C[n] + D · x[p].
///
/// Numerics: in f32; sums over n add over sixteen lanes (n mod 16), then as a tree. Scalar differs from the vector paths by
/// fused multiply-add. Neither the number of threads nor how a sequence is cut into calls shows in a bit.
/// Panics if lengths disagree or H is no multiple of G.
/// Source: Dao and Gu 2024, arXiv:2405.21060.
pub fn selective_scan(cpu: &Cpu, args: SelectiveScan<'_>) {
    let SelectiveScan { x, dt, b, c, groups, a, d, dt_bias, dt_limit, state, out } = args;
    let heads = a.len();
    assert_eq!((d.len(), dt_bias.len()), (heads, heads), "one of each per head");
    assert!(groups > 0 && heads > 0 && heads.is_multiple_of(groups), "heads share groups evenly");
    assert_eq!((x.len(), b.len()), (out.len(), c.len()));
    if dt.is_empty() {
        assert!(x.is_empty() && b.is_empty(), "positions without a time step");
        return;
    }
    assert!(dt.len().is_multiple_of(heads), "a time step per head");
    let t = dt.len() / heads;
    let (width, states) = (x.len() / dt.len(), b.len() / (t * groups));
    assert_eq!((x.len(), b.len()), (t * heads * width, t * groups * states), "whole heads and groups");
    assert_eq!(state.len(), heads * width * states, "a state per head");
    if state.is_empty() {
        return out.fill(0.0);
    }

    let _operator = cpu.operator("selective_scan", || {
        Work::elementwise(2 * state.len() + 2 * (x.len() + b.len()), 5 * t * state.len())
    });
    let (out, state) = (Disjoint::new(out), Disjoint::new(state));
    let per_head = width * states;
    cpu.pool().split(heads, (GRAIN / (t * per_head)).max(1), &|heads_of_part| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let state = unsafe { state.part(heads_of_part.start * per_head..heads_of_part.end * per_head) };
        let step = Step { x, dt, b, c, a, d, dt_bias, dt_limit, heads, groups, width, states };
        dispatch(cpu, Scan { step, part: heads_of_part, state, out: &out });
    });
}

/// What all heads read.
struct Step<'a> {
    x: &'a [f32],
    dt: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    a: &'a [f32],
    d: &'a [f32],
    dt_bias: &'a [f32],
    dt_limit: (f32, f32),
    /// H.
    heads: usize,
    /// G.
    groups: usize,
    /// P.
    width: usize,
    /// N.
    states: usize,
}

struct Scan<'a> {
    step: Step<'a>,
    /// Heads to do.
    part: Range<usize>,
    /// Theirs.
    state: &'a mut [f32],
    out: &'a Disjoint<'a, f32>,
}

impl Kernel for Scan<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Step { heads, width, states, .. } = self.step;
        for (head, state) in self.part.zip(self.state.chunks_exact_mut(width * states)) {
            for row in (head..self.step.dt.len()).step_by(heads) {
                // SAFETY: a head is done by one worker, and positions do not overlap.
                #[allow(unsafe_code)]
                let out = unsafe { self.out.part(row * width..(row + 1) * width) };
                self.step.head::<L>(head, row, state, out);
            }
        }
    }
}

impl Step<'_> {
    /// One head at one position; `row` counts heads of all positions.
    #[inline(always)]
    fn head<L: Lanes>(&self, head: usize, row: usize, state: &mut [f32], out: &mut [f32]) {
        let Self { heads, groups, width, states, .. } = *self;
        let (least, largest) = self.dt_limit;
        // Constants go first: `min` and `max` give their second operand when one is NaN.
        let dt = softplus(L::splat(self.dt[row] + self.dt_bias[head]));
        let dt = L::splat(least).max(L::splat(largest).min(dt));
        let decay = exp(dt.mul(L::splat(self.a[head])));
        let group = (row / heads * groups + head / (heads / groups)) * states;
        let (b, b_tail) = self.b[group..group + states].as_chunks::<LANES>();
        let (c, c_tail) = self.c[group..group + states].as_chunks::<LANES>();
        let x = &self.x[row * width..(row + 1) * width];
        for ((&x, out), state) in x.iter().zip(out).zip(state.chunks_exact_mut(states)) {
            let rate = dt.mul(L::splat(x));
            let mut sum = L::splat(0.0);
            let (state, tail) = state.as_chunks_mut::<LANES>();
            for ((state, b), c) in state.iter_mut().zip(b).zip(c) {
                let new = rate.mul_add(L::load(b), L::load(state).mul(decay));
                new.store(state);
                sum = new.mul_add(L::load(c), sum);
            }
            if !tail.is_empty() {
                let new = rate.mul_add(load_partial(b_tail, 0.0), load_partial::<L>(tail, 0.0).mul(decay));
                store_partial(new, tail);
                sum = new.mul_add(load_partial(c_tail, 0.0), sum);
            }
            *out = sum.sum() + self.d[head] * x;
        }
    }
}
