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
    /// Four rows would need 8 sums of 16 bits, and 16 of f32 beside them: 190 instructions per row and 32 values, where two
    /// take 142.
    const INT_PANELS: &'static [usize] = &[2, 1];

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
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        let mut sums = [[self.splat(0); T]; R];
        for t in 0..T {
            // SAFETY: `self` proves NEON.
            let dots = unsafe {
                [
                    dot_four(kind, &q[t], 0, x),
                    dot_four(kind, &q[t], 1, x),
                    dot_four(kind, &q[t], 2, x),
                    dot_four(kind, &q[t], 3, x),
                ]
            };
            for r in 0..R {
                sums[r][t] = [dots[0][r], dots[1][r], dots[2][r], dots[3][r]];
            }
        }
        sums
    }

    #[inline(always)]
    fn four_signed(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        // SAFETY: `self` proves NEON. Two products fit 16 bits.
        unsafe {
            let (bytes, x) = (vreinterpretq_s8_u32(bytes), vreinterpretq_s8_u32(vdupq_n_u32(x)));
            let [low, high] = [vmull_s8(vget_low_s8(bytes), vget_low_s8(x)), smull2(bytes, x)];
            vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), vpaddq_s16(low, high)))
        }
    }

    /// Σ bytes · x = Σ bytes · (x − 128) + 128 · Σ bytes, where the last is shared by all x.
    #[inline(always)]
    fn four_unsigned(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        // SAFETY: `self` proves NEON. Two products of −128 and −128 do not fit 16 bits.
        unsafe {
            let (bytes, x) = (vreinterpretq_s8_u32(bytes), vreinterpretq_s8_u32(vdupq_n_u32(x ^ 0x8080_8080)));
            let [low, high] = [vmull_s8(vget_low_s8(bytes), vget_low_s8(x)), smull2(bytes, x)];
            let dots = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
            let rest = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(bytes)));
            vreinterpretq_u32_s32(vaddq_s32(vaddq_s32(vreinterpretq_s32_u32(sum), rest), dots))
        }
    }
}

/// Lanes 4 · four .. of all rows of x.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn dot_four<const R: usize, const W: usize>(
    kind: Kind,
    q: &[Words; W],
    four: usize,
    x: &[[u32; R]; W],
) -> [uint32x4_t; R] {
    const { assert!(W % 4 == 0, "words come in fours") };
    // SAFETY: the caller has NEON.
    unsafe {
        let mut sums = Sums::new(kind);
        // By hand up to 8, the usual number: the compiler gives up on the loop.
        sums.add_four(0, q, four, x);
        if W > 4 {
            sums.add_four(4, q, four, x);
        }
        for w in (8..W).step_by(4) {
            sums.add_four(w, q, four, x);
        }
        sums.finish()
    }
}

/// Sums of four rows of W with each row of x.
struct Sums<const R: usize> {
    /// Words whose products may be added in 16 bits.
    group: usize,
    /// Whether two neighbours of `narrow` may be added in 16 bits once a group is complete.
    pairs_fit: bool,
    /// The open group: two rows of W with four bytes each, and two more.
    narrow: [[int16x8_t; 2]; R],
    /// Closed groups, likewise, where pairs do not fit.
    halves: [[int32x4_t; 2]; R],
    /// Closed groups where pairs fit.
    whole: [int32x4_t; R],
}

impl<const R: usize> Sums<R> {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn new(kind: Kind) -> Self {
        // |−128| · 127 is the largest product of signed bytes; two of them still fit.
        let largest = match kind {
            Kind::Unsigned(max) => 127 * max,
            Kind::Signed => 127 * 128,
        };
        let group = (i32::from(i16::MAX) / largest).clamp(1, 8);
        let pairs_fit = 2 * group * largest <= i32::from(i16::MAX);
        // SAFETY: the caller has NEON.
        unsafe {
            let (narrow, halves) = ([[vdupq_n_s16(0); 2]; R], [[vdupq_n_s32(0); 2]; R]);
            Self { group: group as usize, pairs_fit, narrow, halves, whole: [vdupq_n_s32(0); R] }
        }
    }

    /// Adds the products of words w .. w + 4.
    ///
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn add_four<const W: usize>(&mut self, w: usize, q: &[Words; W], four: usize, x: &[[u32; R]; W]) {
        // SAFETY: the caller has NEON.
        unsafe {
            self.add(w, false, q[w][four], &x[w]);
            self.add(w + 1, false, q[w + 1][four], &x[w + 1]);
            self.add(w + 2, false, q[w + 2][four], &x[w + 2]);
            self.add(w + 3, w + 4 == W, q[w + 3][four], &x[w + 3]);
        }
    }

    /// Adds the products of one word.
    ///
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn add(&mut self, index: usize, is_last: bool, q: uint32x4_t, x: &[u32; R]) {
        let (opens, closes) = (index % self.group == 0, index % self.group + 1 == self.group || is_last);
        for r in 0..R {
            // SAFETY: the caller has NEON.
            unsafe {
                let (q, x) = (vreinterpretq_s8_u32(q), vreinterpretq_s8_u32(vdupq_n_u32(x[r])));
                let (low_q, low_x) = (vget_low_s8(q), vget_low_s8(x));
                let [low, high] = self.narrow[r];
                let [low, high] = if opens {
                    [vmull_s8(low_q, low_x), smull2(q, x)]
                } else {
                    [vmlal_s8(low, low_q, low_x), smlal2(high, q, x)]
                };
                self.narrow[r] = [low, high];
                if closes && self.pairs_fit {
                    self.whole[r] = vpadalq_s16(self.whole[r], vpaddq_s16(low, high));
                } else if closes {
                    self.halves[r] = [vpadalq_s16(self.halves[r][0], low), vpadalq_s16(self.halves[r][1], high)];
                }
            }
        }
    }

    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn finish(self) -> [uint32x4_t; R] {
        // SAFETY: the caller has NEON.
        unsafe {
            let mut out = [vdupq_n_u32(0); R];
            for r in 0..R {
                let mut sum = self.whole[r];
                if !self.pairs_fit {
                    sum = vaddq_s32(sum, vpaddq_s32(self.halves[r][0], self.halves[r][1]));
                }
                out[r] = vreinterpretq_u32_s32(sum);
            }
            out
        }
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
