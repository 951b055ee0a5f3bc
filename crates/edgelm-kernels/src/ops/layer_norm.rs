//! Layer normalization.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, load_partial, store_partial};
use crate::{Cpu, Work};

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// out[t, i] = (x[t, i] - mean_i x[t, i]) / sqrt(var_i x[t, i] + eps) · gain[i] + bias[i], with the population variance.
///
/// Shapes: `x`, `out` [T, D]; `gain`, `bias` [D]; T = x.len()/D; no bias is a bias of zeros.
/// Numerics: the mean first, then the squares of differences from it; both add in f32 over sixteen lanes (index mod 16),
/// then as a tree; scalar differs from the vector paths by fused multiply-add. Panics if D is 0 or lengths disagree.
/// Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
pub fn layer_norm(cpu: &Cpu, x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let width = gain.len();
    assert_eq!(x.len(), out.len());
    assert!(bias.is_none_or(|bias| bias.len() == width), "a bias per gain");
    assert_eq!(x.len() % width, 0, "whole rows");
    let len = x.len();
    let _operator = cpu.operator("layer_norm", || Work::elementwise(2 * len + 2 * width, 7 * len));
    let out = Disjoint::new(out);
    let rows = (GRAIN / width).max(1);
    cpu.pool().split(len / width, rows, &|rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(range.clone()) };
        dispatch(cpu, LayerNorm { x: &x[range], gain, bias, eps, out });
    });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.gain.len();
        let (gain, gain_tail) = self.gain.as_chunks::<LANES>();
        let bias = self.bias.map(|bias| bias.as_chunks::<LANES>());
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            let mut sum = load_partial::<L>(x_tail, 0.0);
            for x in x {
                sum = sum.add(L::load(x));
            }
            let mean = sum.sum() / width as f32;
            // Lanes beyond the end hold the mean: their difference from it is 0.
            let x_last = load_partial::<L>(x_tail, mean);
            let mean = L::splat(mean);
            let last = x_last.sub(mean);
            let mut squares = last.mul(last);
            for x in x {
                let difference = L::load(x).sub(mean);
                squares = difference.mul_add(difference, squares);
            }
            let inverse = L::splat(1.0 / (squares.sum() / width as f32 + self.eps).sqrt());

            for (index, ((x, gain), out)) in x.iter().zip(gain).zip(out).enumerate() {
                let scaled = L::load(x).sub(mean).mul(inverse).mul(L::load(gain));
                let result = match bias {
                    Some((bias, _)) => scaled.add(L::load(&bias[index])),
                    None => scaled,
                };
                result.store(out);
            }
            if !x_tail.is_empty() {
                let scaled = last.mul(inverse).mul(load_partial(gain_tail, 0.0));
                let result = match bias {
                    Some((_, bias)) => scaled.add(load_partial(bias, 0.0)),
                    None => scaled,
                };
                store_partial(result, out_tail);
            }
        }
    }
}
