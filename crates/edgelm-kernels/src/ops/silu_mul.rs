//! The gate of a SwiGLU feed-forward layer.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, exp, load_partial, store_partial};
use crate::{Cpu, Work};

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 13;

/// gate[i] = silu(gate[i]) · up[i], silu(x) = x / (1 + exp(-x)).
///
/// Numerics: silu within 4 ULP; -0 where x is so far below zero that exp(-x) overflows. Scalar differs from the vector
/// paths by fused multiply-add. Panics if lengths disagree.
/// Source: Shazeer 2020, arXiv:2002.05202.
pub fn silu_mul(cpu: &Cpu, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let len = gate.len();
    // An exponential counts as one operation.
    let _operator = cpu.operator("silu_mul", || Work::elementwise(3 * len, 5 * len));
    let gate = Disjoint::new(gate);
    cpu.pool().split(len, GRAIN, &|range| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let gate = unsafe { gate.part(range.clone()) };
        dispatch(cpu, SiluMul { gate, up: &up[range] });
    });
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (gate, gate_tail) = self.gate.as_chunks_mut::<LANES>();
        let (up, up_tail) = self.up.as_chunks::<LANES>();
        for (gate, up) in gate.iter_mut().zip(up) {
            silu(L::load(gate)).mul(L::load(up)).store(gate);
        }
        if !gate_tail.is_empty() {
            let product = silu(load_partial::<L>(gate_tail, 0.0)).mul(load_partial(up_tail, 0.0));
            store_partial(product, gate_tail);
        }
    }
}

#[inline(always)]
fn silu<L: Lanes>(x: L) -> L {
    x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x))))
}
