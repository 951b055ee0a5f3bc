//! Processors with `smmla` (Armv8.6; Neoverse V1, N2, Cortex-A510, A710 and on): one instruction multiplies 8 bytes of two
//! rows of W with 8 bytes of two rows of x, twice the products of `sdot`.
//!
//! A register then holds two consecutive words of two rows of W instead of one word of four. Rearranging costs as much as
//! it saves, unless it is done once for many rows of x: so only weights that are unpacked to a buffer are rearranged, and
//! everything else goes through `sdot`. By inline assembly, since the intrinsic is not stable.

use super::arm::{Products, Words};
use super::{Job, Kind, Lanes};
use crate::isa::I8mm;
use std::arch::aarch64::*;
use std::arch::asm;

impl Products for I8mm {
    const INT_PANELS: &'static [usize] = &[4, 2, 1];

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn inside<J: Job<I8mm>>(lanes: I8mm, job: J) -> J::Output {
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
        super::dotprod::dot(self, q, x)
    }

    #[inline(always)]
    fn four_signed(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        // SAFETY: `self` proves `sdot`.
        unsafe { super::dotprod::four_signed(sum, bytes, x) }
    }

    #[inline(always)]
    fn four_unsigned(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t {
        let out: uint32x4_t;
        // SAFETY: `self` proves `sudot`, which touches nothing but its registers. It reads the lowest word of the last one.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "sudot {sum:v}.4s, {bytes:v}.16b, {x:v}.4b[0]",
                sum = inlateout(vreg) sum => out,
                bytes = in(vreg) bytes,
                x = in(vreg) f32::from_bits(x),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }

    /// Of words 2i and 2i + 1: both of rows 0 and 1 of each four first, both of rows 2 and 3 second.
    #[inline(always)]
    fn pair_words(self, q: [Words; 8]) -> [Words; 8] {
        let mut paired = q;
        for (paired, q) in paired.as_chunks_mut::<2>().0.iter_mut().zip(q.as_chunks::<2>().0) {
            // SAFETY: `self` proves NEON.
            unsafe {
                paired[0] = super::arm::pairs(q[0], q[1], |a, b| vzip1q_u32(a, b));
                paired[1] = super::arm::pairs(q[0], q[1], |a, b| vzip2q_u32(a, b));
            }
        }
        paired
    }

    #[inline(always)]
    fn dot_paired<const R: usize, const T: usize, const W: usize>(
        self,
        _kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        let mut sums = [[self.splat(0); T]; R];
        for t in 0..T {
            // SAFETY: `self` proves `smmla`.
            let dots =
                unsafe { [dot_four(&q[t], 0, x), dot_four(&q[t], 1, x), dot_four(&q[t], 2, x), dot_four(&q[t], 3, x)] };
            for r in 0..R {
                sums[r][t] = [dots[0][r], dots[1][r], dots[2][r], dots[3][r]];
            }
        }
        sums
    }
}

/// Lanes 4 · four .. of all rows of x, two at a time; the last row of an odd number keeps itself company.
///
/// # Safety
/// The CPU has `smmla`.
#[inline(always)]
unsafe fn dot_four<const R: usize, const W: usize>(q: &[Words; W], four: usize, x: &[[u32; R]; W]) -> [uint32x4_t; R] {
    const { assert!(W % 2 == 0, "words come in pairs") };
    // SAFETY: the caller has NEON and `smmla`.
    unsafe {
        let mut sums = [[vdupq_n_u32(0); 2]; R];
        for pair in 0..W / 2 {
            let q = [q[2 * pair][four], q[2 * pair + 1][four]];
            for first in (0..R).step_by(2) {
                let x = two_rows([&x[2 * pair], &x[2 * pair + 1]], first);
                sums[first] = [smmla(sums[first][0], x, q[0]), smmla(sums[first][1], x, q[1])];
            }
        }
        let mut out = [vdupq_n_u32(0); R];
        for first in (0..R).step_by(2) {
            // A sum holds both rows of W for the first row of x, then both for the second.
            let [a, b] = sums[first].map(|sum| vreinterpretq_u64_u32(sum));
            out[first] = vreinterpretq_u32_u64(vzip1q_u64(a, b));
            if first + 1 < R {
                out[first + 1] = vreinterpretq_u32_u64(vzip2q_u64(a, b));
            }
        }
        out
    }
}

/// Two words of row `first` of x, then of the row after it.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn two_rows<const R: usize>(x: [&[u32; R]; 2], first: usize) -> uint32x4_t {
    // SAFETY: the caller has NEON; each load reads the four words of its array.
    unsafe {
        if R % 4 == 0 {
            let load = |x: &[u32; R]| vld1q_u32(x.as_chunks::<4>().0[first / 4].as_ptr());
            let rows = [load(x[0]), load(x[1])];
            if first % 4 == 0 { vzip1q_u32(rows[0], rows[1]) } else { vzip2q_u32(rows[0], rows[1]) }
        } else {
            let second = if first + 1 < R { first + 1 } else { first };
            let words = [x[0][first], x[1][first], x[0][second], x[1][second]];
            vld1q_u32(words.as_ptr())
        }
    }
}

/// sum[2i + j] + Σ_b x.byte(8i + b) · q.byte(8j + b).
///
/// # Safety
/// The CPU has `smmla`.
#[inline(always)]
unsafe fn smmla(sum: uint32x4_t, x: uint32x4_t, q: uint32x4_t) -> uint32x4_t {
    let out: uint32x4_t;
    // SAFETY: the caller has the instruction, which touches nothing but its registers.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {x:v}.16b, {q:v}.16b",
            sum = inlateout(vreg) sum => out,
            x = in(vreg) x,
            q = in(vreg) q,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}
