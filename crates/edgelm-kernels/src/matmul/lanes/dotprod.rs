//! Processors with `sdot` (Cortex-A55, A76, Neoverse N1; Armv8.4 and on): one instruction multiplies 16 bytes of weights
//! by one word of activations, chosen from a register of four, and adds the sums of four to 32 bits.
//!
//! By inline assembly, since the intrinsic is not stable.

use super::arm::{Products, Words};
use super::{Job, Kind, Lanes};
use crate::isa::Dotprod;
use std::arch::aarch64::*;
use std::arch::asm;

/// `sdot` with word `$element` of `x`.
macro_rules! sdot {
    ($element:literal, $sum:expr, $q:expr, $x:expr) => {{
        let sum: uint32x4_t;
        asm!(
            ".arch_extension dotprod",
            concat!("sdot {sum:v}.4s, {q:v}.16b, {x:v}.4b[", $element, "]"),
            sum = inlateout(vreg) $sum => sum,
            q = in(vreg) $q,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        );
        sum
    }};
}

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
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        dot(self, q, x)
    }

    #[inline(always)]
    fn four_signed(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        // SAFETY: `self` proves `sdot`.
        unsafe { four_signed(sum, bytes, x) }
    }

    /// Σ bytes · x = Σ bytes · (x − 128) + 64 · Σ bytes + 64 · Σ bytes, where the last two are shared by all x.
    #[inline(always)]
    fn four_unsigned(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        // SAFETY: `self` proves `sdot`.
        unsafe {
            let rest = four_signed(four_signed(vdupq_n_u32(0), bytes, 0x4040_4040), bytes, 0x4040_4040);
            vaddq_u32(rest, four_signed(sum, bytes, x ^ 0x8080_8080))
        }
    }
}

/// [`Products::four_signed`] by `sdot`.
///
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
pub(super) unsafe fn four_signed(sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
    // SAFETY: the caller has `sdot`, which touches nothing but its registers. It reads the lowest word of the last one.
    unsafe { sdot!(0, sum, bytes, f32::from_bits(x)) }
}

/// [`Lanes::dot`] by `sdot`.
#[inline(always)]
pub(super) fn dot<P: Products, const R: usize, const T: usize, const W: usize>(
    lanes: P,
    q: &[[Words; W]; T],
    x: &[[u32; R]; W],
) -> [[Words; T]; R] {
    let mut sums = [[lanes.splat(0); T]; R];
    for t in 0..T {
        // SAFETY: the `Products` of this function's callers prove `sdot`.
        let dots =
            unsafe { [dot_four(&q[t], 0, x), dot_four(&q[t], 1, x), dot_four(&q[t], 2, x), dot_four(&q[t], 3, x)] };
        for r in 0..R {
            sums[r][t] = [dots[0][r], dots[1][r], dots[2][r], dots[3][r]];
        }
    }
    sums
}

/// Lanes 4 · four .. of all rows of x, which are innermost: that many independent sums hide the latency of `sdot`.
///
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
unsafe fn dot_four<const R: usize, const W: usize>(q: &[Words; W], four: usize, x: &[[u32; R]; W]) -> [uint32x4_t; R] {
    let (fours, rest) = x.as_flattened().as_chunks::<4>();
    // SAFETY: the caller has `sdot`; the load reads the four words of its array.
    unsafe {
        let mut sums = [vdupq_n_u32(0); R];
        for (i, x) in fours.iter().enumerate() {
            let x = vld1q_u32(x.as_ptr());
            let (a, b, c, d) = (4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3);
            sums[a % R] = sdot!(0, sums[a % R], q[a / R][four], x);
            sums[b % R] = sdot!(1, sums[b % R], q[b / R][four], x);
            sums[c % R] = sdot!(2, sums[c % R], q[c / R][four], x);
            sums[d % R] = sdot!(3, sums[d % R], q[d / R][four], x);
        }
        for (i, &x) in rest.iter().enumerate() {
            let at = 4 * fours.len() + i;
            sums[at % R] = sdot!(0, sums[at % R], q[at / R][four], vdupq_n_u32(x));
        }
        sums
    }
}
