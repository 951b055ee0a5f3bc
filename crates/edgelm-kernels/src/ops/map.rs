//! A function of one value over a slice, in place, on all threads: what the elementwise operations have in common.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch, load_partial, store_partial};
use crate::{Cpu, Work};

/// A function of one value.
pub(super) trait Map: Copy + Sync {
    /// Name in traces.
    const NAME: &'static str;
    /// Floating-point operations per value; an exponential counts as one.
    const OPERATIONS: usize;
    /// Values per thread below which a second thread costs more than it saves.
    const GRAIN: usize;

    fn apply<L: Lanes>(self, x: L) -> L;
}

/// x[i] ← f(x[i]).
pub(super) fn map_in_place<F: Map>(cpu: &Cpu, x: &mut [f32], f: F) {
    let len = x.len();
    let _operator = cpu.operator(F::NAME, || Work::elementwise(2 * len, F::OPERATIONS * len));
    let x = Disjoint::new(x);
    cpu.pool().split(len, F::GRAIN, &|range| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let x = unsafe { x.part(range) };
        dispatch(cpu, InPlace { x, f });
    });
}

struct InPlace<'a, F> {
    x: &'a mut [f32],
    f: F,
}

impl<F: Map> Kernel for InPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (x, tail) = self.x.as_chunks_mut::<LANES>();
        for x in x {
            self.f.apply(L::load(x)).store(x);
        }
        if !tail.is_empty() {
            store_partial(self.f.apply(load_partial::<L>(tail, 0.0)), tail);
        }
    }
}
