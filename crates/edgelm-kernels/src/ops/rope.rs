//! Rotary position embedding.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::{Cpu, Work};
use edgelm_tensor::RopePairs;

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Rotates the first R = 2 · cos.len()/T components of every head in place:
/// (a, b) ← (a · cos[t, i] - b · sin[t, i], b · cos[t, i] + a · sin[t, i]) for pair i of a head of row t.
///
/// Shapes: `x` [T, H, E]; `cos`, `sin` [T, R/2] (already scaled by the attention factor of YaRN).
/// Numerics: two products, one sum, each rounded. Panics if lengths disagree or R exceeds E.
/// Source: Su et al. 2021, arXiv:2104.09864.
pub fn rope(cpu: &Cpu, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], t: usize, pairs: RopePairs) {
    assert_eq!(cos.len(), sin.len());
    if t == 0 {
        assert!(x.is_empty() && cos.is_empty(), "rows without a position");
        return;
    }
    assert_eq!((x.len() % (t * head_dim), cos.len() % t), (0, 0), "whole rows of heads");
    let (row, angles) = (x.len() / t, cos.len() / t);
    assert!(2 * angles <= head_dim, "cannot rotate {} of {head_dim} components", 2 * angles);
    if row == 0 || angles == 0 {
        return;
    }
    let _operator = cpu.operator("rope", || Work::elementwise(2 * x.len(), 3 * x.len()));
    let x = Disjoint::new(x);
    cpu.pool().split(t, (GRAIN / row).max(1), &|rows| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let x = unsafe { x.part(rows.start * row..rows.end * row) };
        let angles_of_rows = rows.start * angles..rows.end * angles;
        let (cos, sin) = (&cos[angles_of_rows.clone()], &sin[angles_of_rows]);
        dispatch(cpu, Rope { x, row, head_dim, cos, sin, angles, pairs });
    });
}

struct Rope<'a> {
    x: &'a mut [f32],
    /// Values of a row: H · E.
    row: usize,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    /// Of a row: R/2.
    angles: usize,
    pairs: RopePairs,
}

impl Kernel for Rope<'_> {
    type Output = ();

    // Plain loops: the compiler vectorizes them for the instruction set of the caller, without changing a bit.
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let angles = self.cos.chunks_exact(self.angles).zip(self.sin.chunks_exact(self.angles));
        for (row, (cos, sin)) in self.x.chunks_exact_mut(self.row).zip(angles) {
            for head in row.chunks_exact_mut(self.head_dim) {
                let rotated = &mut head[..2 * cos.len()];
                match self.pairs {
                    RopePairs::Halves => {
                        let (first, second) = rotated.split_at_mut(cos.len());
                        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                    RopePairs::Interleaved => {
                        for (([a, b], cos), sin) in rotated.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                }
            }
        }
    }
}
