//! The residual connection.

use crate::disjoint::Disjoint;
use crate::simd::{Kernel, LANES, Lanes, dispatch};
use crate::{Cpu, Work};

/// Values per thread below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 15;

/// x[i] += y[i]. Panics if lengths disagree.
pub fn add_assign(cpu: &Cpu, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let len = x.len();
    let _operator = cpu.operator("add", || Work::elementwise(3 * len, len));
    let x = Disjoint::new(x);
    cpu.pool().split(len, GRAIN, &|range| {
        // SAFETY: `split` hands out ranges that do not overlap.
        #[allow(unsafe_code)]
        let x = unsafe { x.part(range.clone()) };
        dispatch(cpu, AddAssign { x, y: &y[range] });
    });
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (x, x_tail) = self.x.as_chunks_mut::<LANES>();
        let (y, y_tail) = self.y.as_chunks::<LANES>();
        for (x, y) in x.iter_mut().zip(y) {
            L::load(x).add(L::load(y)).store(x);
        }
        for (x, y) in x_tail.iter_mut().zip(y_tail) {
            *x += y;
        }
    }
}
