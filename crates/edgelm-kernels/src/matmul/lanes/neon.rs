//! Processors with nothing but NEON (Cortex-A53, A72): bytes are multiplied to 16 bits by `smull` and `smlal`.
//!
//! Each 16-bit lane sums the products of the same byte of consecutive words. As many words as stay below 2^15 are added
//! before the sums are widened: for weights of 4 bits a whole sub-block of 8, and even the sum of two lanes still fits.

use super::arm::{Products, Words};
use super::{Job, Kind, Lanes};
use crate::isa::Neon;
use std::arch::aarch64::*;
use std::arch::asm;

impl Products for Neon {
    const INT_PANELS: &'static [usize] = &[4, 2, 1];

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "neon")]
        fn inside<J: Job<Neon>>(lanes: Neon, job: J) -> J::Output {
            job.run(lanes)
        }
        // SAFETY: `self` proves the feature.
        unsafe { inside(self, job) }
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        start: [i32; R],
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        let mut sums = [[self.splat(0); T]; R];
        for t in 0..T {
            // SAFETY: `self` proves NEON.
            let dots = unsafe {
                [
                    dot_four(kind, start, &q[t], 0, x),
                    dot_four(kind, start, &q[t], 1, x),
                    dot_four(kind, start, &q[t], 2, x),
                    dot_four(kind, start, &q[t], 3, x),
                ]
            };
            for r in 0..R {
                sums[r][t] = [dots[0][r], dots[1][r], dots[2][r], dots[3][r]];
            }
        }
        sums
    }
}

/// Lanes 4 · four .. of all rows of x.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn dot_four<const R: usize, const W: usize>(
    kind: Kind,
    start: [i32; R],
    q: &[Words; W],
    four: usize,
    x: &[[u32; R]; W],
) -> [uint32x4_t; R] {
    // |−128| · 127 is the largest product of signed bytes; two of them still fit.
    let largest = match kind {
        Kind::Unsigned(max) => 127 * max,
        Kind::Signed => 127 * 128,
    };
    let group = (i32::from(i16::MAX) / largest).clamp(1, W as i32) as usize;
    let pairs_fit = 2 * group as i32 * largest <= i32::from(i16::MAX);
    // SAFETY: the caller has NEON.
    unsafe {
        let mut sums = [vdupq_n_s32(0); R];
        for r in 0..R {
            sums[r] = vdupq_n_s32(start[r]);
        }
        // A product of 8 bytes covers two rows of W, so it takes two sums of products to make one of rows.
        let mut halves = [[vdupq_n_s32(0); 2]; R];
        let mut w = 0;
        while w < W {
            let end = if w + group < W { w + group } else { W };
            let mut narrow = [[vdupq_n_s16(0); 2]; R];
            for i in w..end {
                let q = vreinterpretq_s8_u32(q[i][four]);
                for r in 0..R {
                    let x = vreinterpretq_s8_u32(vdupq_n_u32(x[i][r]));
                    narrow[r] = if i == w {
                        [vmull_s8(vget_low_s8(q), vget_low_s8(x)), smull2(q, x)]
                    } else {
                        [vmlal_s8(narrow[r][0], vget_low_s8(q), vget_low_s8(x)), smlal2(narrow[r][1], q, x)]
                    };
                }
            }
            for r in 0..R {
                let [low, high] = narrow[r];
                if pairs_fit {
                    sums[r] = vpadalq_s16(sums[r], vpaddq_s16(low, high));
                } else {
                    halves[r] = [vpadalq_s16(halves[r][0], low), vpadalq_s16(halves[r][1], high)];
                }
            }
            w = end;
        }
        let mut out = [vdupq_n_u32(0); R];
        for r in 0..R {
            let sum = if pairs_fit { sums[r] } else { vaddq_s32(sums[r], vpaddq_s32(halves[r][0], halves[r][1])) };
            out[r] = vreinterpretq_u32_s32(sum);
        }
        out
    }
}

// The compiler makes two instructions of the intrinsics for these: it sees that the upper half of a repeated word is its
// lower half, and no longer that the one instruction takes the upper half of both.

/// a[i + 8] · b[i + 8].
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn smull2(a: int8x16_t, b: int8x16_t) -> int16x8_t {
    let product: int16x8_t;
    // SAFETY: the caller has the instruction, which touches nothing but its registers.
    unsafe {
        asm!(
            "smull2 {product:v}.8h, {a:v}.16b, {b:v}.16b",
            product = lateout(vreg) product,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    product
}

/// sum[i] + a[i + 8] · b[i + 8].
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn smlal2(sum: int16x8_t, a: int8x16_t, b: int8x16_t) -> int16x8_t {
    let out: int16x8_t;
    // SAFETY: the caller has the instruction, which touches nothing but its registers.
    unsafe {
        asm!(
            "smlal2 {sum:v}.8h, {a:v}.16b, {b:v}.16b",
            sum = inlateout(vreg) sum => out,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}
