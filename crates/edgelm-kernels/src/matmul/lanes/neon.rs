//! Processors with nothing but NEON (Cortex-A53, A72): bytes are multiplied to 16 bits by `smull` and `smlal`.
//!
//! Each 16-bit lane sums the products of the same byte of consecutive words. As many words as stay below 2^15 are added
//! before the sums are widened: for weights of 4 bits a whole sub-block of 8, and even the sum of two lanes still fits.

use super::arm::{Products, Words};
use super::{Job, Kind, Lanes};
use crate::isa::Neon;
use std::arch::aarch64::*;

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
            for four in 0..4 {
                for r in 0..R {
                    // SAFETY: `self` proves NEON.
                    sums[r][t][four] = unsafe { dot_four(kind, start[r], &q[t], four, x, r) };
                }
            }
        }
        sums
    }
}

/// Four lanes of one dot product.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn dot_four<const R: usize, const W: usize>(
    kind: Kind,
    start: i32,
    q: &[Words; W],
    four: usize,
    x: &[[u32; R]; W],
    r: usize,
) -> uint32x4_t {
    // |−128| · 127 is the largest product of signed bytes; two of them still fit.
    let largest = match kind {
        Kind::Unsigned(max) => 127 * max,
        Kind::Signed => 127 * 128,
    };
    let group = (i32::from(i16::MAX) / largest).clamp(1, W as i32) as usize;
    let pairs_fit = 2 * group as i32 * largest <= i32::from(i16::MAX);
    // SAFETY: the caller has NEON.
    unsafe {
        let mut sum = vdupq_n_s32(start);
        // Two more sums, of the pairs of rows that one 8-byte product covers.
        let mut two = [vdupq_n_s32(0); 2];
        let mut w = 0;
        while w < W {
            let mut narrow = [vdupq_n_s16(0); 2];
            let end = if w + group < W { w + group } else { W };
            for i in w..end {
                let x = vreinterpretq_s8_u32(vdupq_n_u32(x[i][r]));
                let q = vreinterpretq_s8_u32(q[i][four]);
                if i == w {
                    narrow = [vmull_s8(vget_low_s8(q), vget_low_s8(x)), vmull_high_s8(q, x)];
                } else {
                    narrow[0] = vmlal_s8(narrow[0], vget_low_s8(q), vget_low_s8(x));
                    narrow[1] = vmlal_high_s8(narrow[1], q, x);
                }
            }
            if pairs_fit {
                sum = vpadalq_s16(sum, vpaddq_s16(narrow[0], narrow[1]));
            } else {
                two = [vpadalq_s16(two[0], narrow[0]), vpadalq_s16(two[1], narrow[1])];
            }
            w = end;
        }
        if !pairs_fit {
            sum = vaddq_s32(sum, vpaddq_s32(two[0], two[1]));
        }
        vreinterpretq_u32_s32(sum)
    }
}
