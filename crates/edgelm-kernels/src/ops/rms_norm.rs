//! Root-mean-square normalization.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, load_partial};
use crate::{Cpu, Work};

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// out[t, i] = x[t, i] / sqrt(mean_i(x[t, i]²) + eps) · gain[i]. Shapes: `x`, `out` [T, D]; `gain` [D]; T = x.len()/D.
///
/// Numerics: squares add in f32 over sixteen lanes (index mod 16), then as a tree; scalar differs from the vector paths by
/// fused multiply-add. Panics if D is 0 or lengths disagree.
/// Source: Zhang and Sennrich 2019, arXiv:1910.07467.
pub fn rms_norm(cpu: &Cpu, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let width = gain.len();
    assert_eq!(x.len(), out.len());
    assert_eq!(x.len() % width, 0, "whole rows");
    let len = x.len();
    let _operator = cpu.operator("rms_norm", || Work::elementwise(2 * len + width, 4 * len));
    let out = Disjoint::new(out);
    let rows = (GRAIN / width).max(1);
    cpu.pool().split(len / width, rows, &|rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(range.clone()) };
        dispatch(cpu, RmsNorm { x: &x[range], gain, eps, out });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.gain.len();
        let (gain, gain_tail) = self.gain.as_chunks::<LANES>();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            let mut squares = L::splat(0.0);
            for x in x {
                let x = L::load(x);
                squares = x.mul_add(x, squares);
            }
            let x_last = load_partial::<L>(x_tail, 0.0);
            squares = x_last.mul_add(x_last, squares);

            let inverse = 1.0 / (squares.sum() / width as f32 + self.eps).sqrt();
            for ((x, gain), out) in x.iter().zip(gain).zip(out) {
                L::load(x).mul(L::splat(inverse)).mul(L::load(gain)).store(out);
            }
            for ((x, gain), out) in x_tail.iter().zip(gain_tail).zip(out_tail) {
                *out = x * inverse * gain;
            }
        }
    }
}
