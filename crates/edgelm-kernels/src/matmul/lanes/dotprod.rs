//! Processors with `sdot` (Cortex-A55, A76, Neoverse N1; Armv8.4 and on): one instruction multiplies 16 bytes of weights
//! by one word of activations, chosen from a register of four, and adds the sums of four to 32 bits.
//!
//! By inline assembly, since the intrinsic is not stable.

use super::arm::{Products, Words};
use super::{Job, Kind, Lanes};
use crate::isa::Dotprod;
use std::arch::aarch64::*;
use std::arch::asm;

impl Products for Dotprod {
    const INT_PANELS: &'static [usize] = &[4, 2, 1];

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn inside<J: Job<Dotprod>>(lanes: Dotprod, job: J) -> J::Output {
            job.run(lanes)
        }
        // SAFETY: `self` proves the features.
        unsafe { inside(self, job) }
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        _kind: Kind,
        start: [i32; R],
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        dot(self, start, q, x)
    }
}

/// `sdot` with one word of `x`.
macro_rules! sdot_element {
    ($element:literal, $sum:expr, $q:expr, $x:expr) => {{
        let sum: uint32x4_t;
        asm!(
            concat!("sdot {sum:v}.4s, {q:v}.16b, {x:v}.4b[", $element, "]"),
            sum = inlateout(vreg) $sum => sum,
            q = in(vreg) $q,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        );
        sum
    }};
}

/// [`Lanes::dot`] by `sdot`, four rows of W at a time.
#[inline(always)]
pub(super) fn dot<P: Products, const R: usize, const T: usize, const W: usize>(
    lanes: P,
    start: [i32; R],
    q: &[[Words; W]; T],
    x: &[[u32; R]; W],
) -> [[Words; T]; R] {
    let x = x.as_flattened();
    let mut sums = [[lanes.splat(0); T]; R];
    for t in 0..T {
        for four in 0..4 {
            for r in 0..R {
                sums[r][t][four] = lanes.splat(start[r] as u32)[four];
            }
            // Rows of x innermost: that many independent sums hide the latency of `sdot`.
            for w in 0..W {
                for r in 0..R {
                    // SAFETY: `Products` of this function's callers prove `sdot`.
                    sums[r][t][four] = unsafe { sdot(sums[r][t][four], q[t][w][four], x, w * R + r) };
                }
            }
        }
    }
    sums
}

/// sum[i] + Σ_b q[i].byte(b) · x[index].byte(b).
///
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
unsafe fn sdot(sum: uint32x4_t, q: uint32x4_t, x: &[u32], index: usize) -> uint32x4_t {
    // SAFETY: the caller has `sdot`; the load reads the four words of its array.
    unsafe {
        let Some(four) = x.as_chunks::<4>().0.get(index / 4) else {
            return sdot_element!(0, sum, q, vdupq_n_u32(x[index]));
        };
        let x = vld1q_u32(four.as_ptr());
        match index % 4 {
            0 => sdot_element!(0, sum, q, x),
            1 => sdot_element!(1, sum, q, x),
            2 => sdot_element!(2, sum, q, x),
            _ => sdot_element!(3, sum, q, x),
        }
    }
}
