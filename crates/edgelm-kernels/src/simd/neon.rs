//! Four 128-bit registers.

use super::{Kernel, LANES, Lanes};
use std::arch::aarch64::*;

/// # Safety
/// The CPU has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// Lanes 4i .. 4i + 4 in register i.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn map(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self([f(self.0[0]), f(self.0[1]), f(self.0[2]), f(self.0[3])])
    }
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        let (a, b) = (self.0, other.0);
        Self([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])])
    }
}

// Every `unsafe` block below calls intrinsics, which need only that the CPU has NEON: values of this type exist only inside
// `run`, whose caller has them. Pointers come from array references of exactly the size that is read or written.
impl Lanes for Neon {
    /// Sixteen registers, half of them.
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let from = from.as_chunks::<4>().0;
        // SAFETY: see above.
        let load = |i: usize| unsafe { vld1q_f32(from[i].as_ptr()) };
        Self([load(0), load(1), load(2), load(3)])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        for (to, four) in to.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            // SAFETY: see above.
            unsafe { vst1q_f32(to.as_mut_ptr(), four) }
        }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        let from = from.as_chunks::<4>().0;
        // SAFETY: see above.
        let load = |i: usize| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from[i].as_ptr()))) };
        Self([load(0), load(1), load(2), load(3)])
    }
    #[inline(always)]
    fn load_i32(from: &[u32; LANES]) -> Self {
        let from = from.as_chunks::<4>().0;
        // SAFETY: see above.
        let load = |i: usize| unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(vld1q_u32(from[i].as_ptr()))) };
        Self([load(0), load(1), load(2), load(3)])
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; LANES]) {
        // SAFETY: see above.
        unsafe {
            let words = |i: usize| vmovn_s32(vcvtnq_s32_f32(self.0[i]));
            let low = vmovn_s16(vcombine_s16(words(0), words(1)));
            let high = vmovn_s16(vcombine_s16(words(2), words(3)));
            vst1q_u8(to.as_mut_ptr(), vreinterpretq_u8_s8(vcombine_s8(low, high)));
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see above.
        let fma = |i: usize| unsafe { vfmaq_f32(addend.0[i], self.0[i], factor.0[i]) };
        Self([fma(0), fma(1), fma(2), fma(3)])
    }
    // `fmin` and `fmax` give NaN where either is.
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see above.
        self.map(|a| unsafe { vrndnq_f32(a) })
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        // SAFETY: see above.
        self.map(|a| unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)))) })
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        self.mul(n.exp2_integer())
    }
    #[inline(always)]
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: see above.
        let select = |i: usize| unsafe { vbslq_f32(vcltq_f32(self.0[i], bound.0[i]), then.0[i], otherwise.0[i]) };
        Self([select(0), select(1), select(2), select(3)])
    }
    #[inline(always)]
    fn keep(self, from: i32, to: i32, fill: f32) -> Self {
        const NUMBERS: [i32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let numbers = NUMBERS.as_chunks::<4>().0;
        // SAFETY: see above.
        let keep = |i: usize| unsafe {
            let number = vld1q_s32(numbers[i].as_ptr());
            let within = vandq_u32(vcgeq_s32(number, vdupq_n_s32(from)), vcltq_s32(number, vdupq_n_s32(to)));
            vbslq_f32(within, self.0[i], vdupq_n_f32(fill))
        };
        Self([keep(0), keep(1), keep(2), keep(3)])
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(self.0[0], self.0[2]), vaddq_f32(self.0[1], self.0[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        let larger = |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) };
        let four = larger(larger(self.0[0], self.0[2]), larger(self.0[1], self.0[3]));
        // SAFETY: see above.
        unsafe {
            let (low, high) = (vget_low_f32(four), vget_high_f32(four));
            let two = vbsl_f32(vcgt_f32(low, high), low, high);
            let (a, b) = (vget_lane_f32::<0>(two), vget_lane_f32::<1>(two));
            if a > b { a } else { b }
        }
    }
}
