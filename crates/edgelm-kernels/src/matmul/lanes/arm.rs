//! What all families of 64-bit Arm share: four 128-bit registers per vector, rows 4i .. 4i + 4 of a tile in register i.
//! They differ in [`Products`] alone.

use super::{Job, Kind, Lanes, Line, ROWS, SPREAD};
use std::arch::aarch64::*;

// Every `unsafe` block below calls NEON intrinsics, which need only that the CPU has the instructions; a value that
// implements `Products` exists only if it has. Loads and stores go through references of exactly the size that is
// accessed.

/// Rows 4i .. 4i + 4 in register i.
pub(super) type Words = [uint32x4_t; 4];
type Floats = [float32x4_t; 4];

/// The products of bytes, which each generation of Arm processors does with other instructions. A value is the proof of
/// NEON and of those instructions.
pub(super) trait Products: Copy + Send + Sync {
    /// See [`Lanes::INT_PANELS`].
    const INT_PANELS: &'static [usize];

    /// See [`Lanes::enter`].
    fn enter<J: Job<Self>>(self, job: J) -> J::Output
    where
        Self: Lanes;

    /// See [`Lanes::dot`].
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R];

    /// sum[i] + Σ_b bytes[i].byte(b) · x.byte(b), four rows of [`Lanes::dot_signed`].
    fn four_signed(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t;

    /// Four rows of [`Lanes::dot_unsigned`].
    fn four_unsigned(self, sum: uint32x4_t, bytes: uint32x4_t, x: u32) -> uint32x4_t;

    /// See [`Lanes::pair_words`].
    #[inline(always)]
    fn pair_words(self, q: [Words; 8]) -> [Words; 8] {
        q
    }

    /// See [`Lanes::dot_paired`].
    #[inline(always)]
    fn dot_paired<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        Products::dot(self, kind, q, x)
    }
}

/// Applies a function to each register.
#[inline(always)]
fn each<A: Copy, B>(a: [A; 4], f: impl Fn(A) -> B) -> [B; 4] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

/// Applies a function to each pair of registers.
#[inline(always)]
pub(super) fn pairs<A: Copy, B>(a: [A; 4], b: [A; 4], f: impl Fn(A, A) -> B) -> [B; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl<P: Products> Lanes for P {
    type U = Words;
    type F = Floats;
    type Vector = Self;
    type Simd = crate::simd::Neon;

    const SIGNED_OFFSET: i32 = 0;
    const INT_PANELS: &'static [usize] = P::INT_PANELS;
    /// Six rows take 24 of the 32 registers for sums, 4 for weights and 2 for activations.
    const FLOAT_PANELS: &'static [usize] = &[6, 4, 2, 1];
    const TWO_TILES: bool = false;

    #[inline(always)]
    fn vector(self) -> Self::Vector {
        self
    }

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        Products::enter(self, job)
    }

    #[inline(always)]
    fn splat(self, value: u32) -> Words {
        // SAFETY: see above.
        unsafe { [vdupq_n_u32(value); 4] }
    }
    #[inline(always)]
    fn load(self, line: &Line) -> Words {
        let four = |i: usize| &line.0[4 * i..4 * i + 4];
        // SAFETY: see above; each load reads the four words of its slice.
        unsafe {
            [
                vld1q_u32(four(0).as_ptr()),
                vld1q_u32(four(1).as_ptr()),
                vld1q_u32(four(2).as_ptr()),
                vld1q_u32(four(3).as_ptr()),
            ]
        }
    }
    #[inline(always)]
    fn store(self, value: Words, line: &mut Line) {
        for (four, value) in line.0.as_chunks_mut::<4>().0.iter_mut().zip(value) {
            // SAFETY: see above; the store fills the four words.
            unsafe { vst1q_u32(four.as_mut_ptr(), value) }
        }
    }
    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe { vandq_u32(a, b) })
    }
    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe { vorrq_u32(a, b) })
    }
    #[inline(always)]
    fn xor(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe { veorq_u32(a, b) })
    }
    #[inline(always)]
    fn shl(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above.
        each(a, |a| unsafe { vshlq_u32(a, vdupq_n_s32(bits as i32)) })
    }
    #[inline(always)]
    fn shr(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above. A negative shift goes right.
        each(a, |a| unsafe { vshlq_u32(a, vdupq_n_s32(-(bits as i32))) })
    }
    #[inline(always)]
    fn sar(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above.
        each(a, |a| unsafe { vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(a), vdupq_n_s32(-(bits as i32)))) })
    }
    #[inline(always)]
    fn byte_bits(self, a: Words, shift: u32, mask: u8) -> Words {
        // SAFETY: see above. Bytes shift by themselves, so that the highest bits need no mask.
        let shifted =
            each(a, |a| unsafe { vreinterpretq_u32_u8(vshlq_u8(vreinterpretq_u8_u32(a), vdupq_n_s8(-(shift as i8)))) });
        if mask == 0xff >> shift { shifted } else { self.and(shifted, self.splat(u32::from_ne_bytes([mask; 4]))) }
    }
    #[inline(always)]
    fn sub(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe { vsubq_u32(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, a: Words, b: Words, c: Words) -> Words {
        // SAFETY: see above.
        let four = |i: usize| unsafe { vmlaq_u32(c[i], a[i], b[i]) };
        [four(0), four(1), four(2), four(3)]
    }
    #[inline(always)]
    fn max(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe {
            vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)))
        })
    }
    #[inline(always)]
    fn mul_fractions(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe {
            vreinterpretq_u32_s16(vqrdmulhq_s16(vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b)))
        })
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], bytes: Words) -> Words {
        // SAFETY: see above; the load reads the whole table.
        unsafe {
            let table = vld1q_s8(table.as_ptr());
            each(bytes, |bytes| vreinterpretq_u32_s8(vqtbl1q_s8(table, vreinterpretq_u8_u32(bytes))))
        }
    }
    #[inline(always)]
    fn spread<const HALF: usize>(self, pairs_of_bytes: Words, masks: Words) -> Words {
        let table = bytemuck::cast_ref::<[u32; 16], [u8; 64]>(&SPREAD[HALF]);
        let part = |i: usize| &table[16 * i..16 * i + 16];
        // SAFETY: see above; each load reads the 16 bytes of its slice.
        unsafe {
            let table = uint8x16x4_t(
                vld1q_u8(part(0).as_ptr()),
                vld1q_u8(part(1).as_ptr()),
                vld1q_u8(part(2).as_ptr()),
                vld1q_u8(part(3).as_ptr()),
            );
            let first = vreinterpretq_u8_u64(vcombine_u64(
                vcreate_u64(0x0404_0404_0000_0000),
                vcreate_u64(0x0c0c_0c0c_0808_0808),
            ));
            pairs(pairs_of_bytes, masks, |bytes, masks| {
                // Bytes 4 · mask .. 4 · mask + 4 of the table.
                let mask = vandq_u32(masks, vdupq_n_u32(15));
                let at = vmlaq_n_u32(vdupq_n_u32(0x0302_0100), mask, 0x0404_0404);
                let from = vorrq_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(at)), first);
                vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(bytes), from))
            })
        }
    }
    #[inline(always)]
    fn signed(self, bytes: Words) -> Words {
        bytes
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        Products::dot(self, kind, q, x)
    }
    #[inline(always)]
    fn dot_signed(self, sum: Words, bytes: Words, x: u32) -> Words {
        pairs(sum, bytes, |sum, bytes| self.four_signed(sum, bytes, x))
    }
    #[inline(always)]
    fn dot_unsigned(self, sum: Words, bytes: Words, x: u32) -> Words {
        pairs(sum, bytes, |sum, bytes| self.four_unsigned(sum, bytes, x))
    }
    #[inline(always)]
    fn pair_words(self, q: [Words; 8]) -> [Words; 8] {
        Products::pair_words(self, q)
    }
    #[inline(always)]
    fn dot_paired<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        Products::dot_paired(self, kind, q, x)
    }

    #[inline(always)]
    fn to_f32(self, a: Words) -> Floats {
        // SAFETY: see above.
        each(a, |a| unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(a)) })
    }
    #[inline(always)]
    fn round(self, a: Floats) -> Words {
        // SAFETY: see above.
        each(a, |a| unsafe { vreinterpretq_u32_s32(vcvtnq_s32_f32(a)) })
    }
    #[inline(always)]
    fn as_bits(self, a: Floats) -> Words {
        // SAFETY: see above.
        each(a, |a| unsafe { vreinterpretq_u32_f32(a) })
    }
    #[inline(always)]
    fn as_floats(self, a: Words) -> Floats {
        // SAFETY: see above.
        each(a, |a| unsafe { vreinterpretq_f32_u32(a) })
    }
    #[inline(always)]
    fn load_u16(self, values: &[u16; ROWS]) -> Words {
        // SAFETY: see above; each load reads the four halves of its array.
        let load = |values: &[u16; 4]| unsafe { vmovl_u16(vld1_u16(values.as_ptr())) };
        let fours = values.as_chunks::<4>().0;
        [load(&fours[0]), load(&fours[1]), load(&fours[2]), load(&fours[3])]
    }
    #[inline(always)]
    fn splat_f32(self, value: f32) -> Floats {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    fn load_f32(self, values: &[f32; ROWS]) -> Floats {
        // SAFETY: see above; each load reads the four values of its array.
        let load = |values: &[f32; 4]| unsafe { vld1q_f32(values.as_ptr()) };
        let fours = values.as_chunks::<4>().0;
        [load(&fours[0]), load(&fours[1]), load(&fours[2]), load(&fours[3])]
    }
    #[inline(always)]
    fn store_f32(self, value: Floats, out: &mut [f32; ROWS]) {
        for (four, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(value) {
            // SAFETY: see above; the store fills the four values.
            unsafe { vst1q_f32(four.as_mut_ptr(), value) }
        }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; ROWS]) -> Floats {
        // SAFETY: see above; each load reads the four halves of its array.
        let load = |values: &[u16; 4]| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(values.as_ptr()))) };
        let fours = values.as_chunks::<4>().0;
        [load(&fours[0]), load(&fours[1]), load(&fours[2]), load(&fours[3])]
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; ROWS]) -> Floats {
        // SAFETY: see above; each load reads the four halves of its array.
        let load = |values: &[u16; 4]| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(values.as_ptr()))) };
        let fours = values.as_chunks::<4>().0;
        [load(&fours[0]), load(&fours[1]), load(&fours[2]), load(&fours[3])]
    }
    #[inline(always)]
    fn f16_low(self, a: Words) -> Floats {
        // SAFETY: see above.
        each(a, |a| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(a))) })
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: see above.
        pairs(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        // SAFETY: see above.
        let fma = |i: usize| unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        [fma(0), fma(1), fma(2), fma(3)]
    }

    #[inline(always)]
    fn max_magnitude(self, values: &[[f32; 32]]) -> u32 {
        // SAFETY: see above; each load reads the four values of its array.
        unsafe {
            let mask = vdupq_n_u32(0x7fff_ffff);
            let mut max = vdupq_n_u32(0);
            for four in values.as_flattened().as_chunks::<4>().0 {
                max = vmaxq_u32(max, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(four.as_ptr())), mask));
            }
            vmaxvq_u32(max)
        }
    }
    #[inline(always)]
    fn quantize(self, values: &[f32; 32], factor: f32, out: &mut [i8; 32]) -> [i32; 2] {
        let mut sums = [0; 2];
        for half in 0..2 {
            let values = &values.as_chunks::<16>().0[half].as_chunks::<4>().0;
            // SAFETY: see above; each load reads the four values of its array, and the store fills the 16 bytes.
            unsafe {
                let words = |i: usize| vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values[i].as_ptr()), factor));
                let low = vcombine_s16(vmovn_s32(words(0)), vmovn_s32(words(1)));
                let high = vcombine_s16(vmovn_s32(words(2)), vmovn_s32(words(3)));
                vst1q_s8(out[16 * half..].as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
                sums[half] = i32::from(vaddvq_s16(vaddq_s16(low, high)));
            }
        }
        sums
    }

    #[inline(always)]
    fn prefetch(self, line: *const Line) {
        // SAFETY: a prefetch never faults.
        unsafe { std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags)) }
    }
}
