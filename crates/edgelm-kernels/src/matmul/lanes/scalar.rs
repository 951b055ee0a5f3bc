//! The definition of every operation, for any CPU.

use super::{Job, Kind, Lanes, Line, ROWS, SPREAD};
use half::f16;

/// Always there.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type Words = [u32; ROWS];
type Floats = [f32; ROWS];

impl Lanes for Scalar {
    type U = Words;
    type F = Floats;
    type Vector = Self;
    type Simd = crate::simd::Scalar;

    const SIGNED_OFFSET: i32 = 0;
    // A row at a time: sixteen lanes of each operation are spelled out, and with wider panels this definition was half of all
    // code and a third of the time to compile it (270 s of processor time against 190).
    const FEW_PANELS: &'static [usize] = &[1];
    const INT_PANELS: &'static [usize] = &[1];
    const FLOAT_PANELS: &'static [usize] = &[4, 2, 1];
    const TWO_TILES: bool = false;

    fn vector(self) -> Self::Vector {
        self
    }

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        job.run(self)
    }

    #[inline]
    fn splat(self, value: u32) -> Words {
        [value; ROWS]
    }
    #[inline]
    fn load(self, line: &Line) -> Words {
        line.0
    }
    #[inline]
    fn store(self, value: Words, line: &mut Line) {
        line.0 = value;
    }
    #[inline]
    fn and(self, a: Words, b: Words) -> Words {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline]
    fn or(self, a: Words, b: Words) -> Words {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline]
    fn xor(self, a: Words, b: Words) -> Words {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline]
    fn shl(self, a: Words, bits: u32) -> Words {
        a.map(|word| word << bits)
    }
    #[inline]
    fn shr(self, a: Words, bits: u32) -> Words {
        a.map(|word| word >> bits)
    }
    #[inline]
    fn sar(self, a: Words, bits: u32) -> Words {
        a.map(|word| (word as i32 >> bits) as u32)
    }
    #[inline]
    fn sub(self, a: Words, b: Words) -> Words {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline]
    fn mul_add(self, a: Words, b: Words, c: Words) -> Words {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i]))
    }
    #[inline]
    fn max(self, a: Words, b: Words) -> Words {
        std::array::from_fn(|i| (a[i] as i32).max(b[i] as i32) as u32)
    }
    #[inline]
    fn lookup(self, table: &[i8; 16], bytes: Words) -> Words {
        bytes.map(|word| u32::from_le_bytes(word.to_le_bytes().map(|byte| table[usize::from(byte & 15)] as u8)))
    }
    #[inline]
    fn spread<const HALF: usize>(self, pairs: Words, masks: Words) -> Words {
        let place = |word: u32, mask: u32| {
            let from = SPREAD[HALF][(mask & 15) as usize].to_le_bytes();
            let bytes = word.to_le_bytes();
            u32::from_le_bytes(from.map(|at| if at < 4 { bytes[usize::from(at)] } else { 0 }))
        };
        std::array::from_fn(|i| place(pairs[i], masks[i]))
    }
    #[inline]
    fn signed(self, bytes: Words) -> Words {
        bytes
    }

    #[inline]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        let widen = |byte: u8| match kind {
            Kind::Unsigned(_) => i32::from(byte),
            Kind::Signed => i32::from(byte as i8),
        };
        std::array::from_fn(|r| {
            std::array::from_fn(|t| {
                let mut sums = [0i32; ROWS];
                for w in 0..W {
                    let x = x[w][r].to_le_bytes().map(|byte| i32::from(byte as i8));
                    for (sum, word) in sums.iter_mut().zip(q[t][w]) {
                        let q = word.to_le_bytes().map(widen);
                        *sum += q[0] * x[0] + q[1] * x[1] + q[2] * x[2] + q[3] * x[3];
                    }
                }
                sums.map(|sum| sum as u32)
            })
        })
    }

    #[inline]
    fn to_f32(self, a: Words) -> Floats {
        a.map(|word| word as i32 as f32)
    }
    #[inline]
    fn round(self, a: Floats) -> Words {
        a.map(|value| value.round_ties_even() as i32 as u32)
    }
    #[inline]
    fn as_bits(self, a: Floats) -> Words {
        a.map(f32::to_bits)
    }
    #[inline]
    fn as_floats(self, a: Words) -> Floats {
        a.map(f32::from_bits)
    }
    #[inline]
    fn load_u16(self, values: &[u16; ROWS]) -> Words {
        values.map(u32::from)
    }
    #[inline]
    fn splat_f32(self, value: f32) -> Floats {
        [value; ROWS]
    }
    #[inline]
    fn load_f32(self, values: &Floats) -> Floats {
        *values
    }
    #[inline]
    fn store_f32(self, value: Floats, out: &mut Floats) {
        *out = value;
    }
    #[inline]
    fn load_f16(self, values: &[u16; ROWS]) -> Floats {
        values.map(|bits| f16::from_bits(bits).to_f32_const())
    }
    #[inline]
    fn load_bf16(self, values: &[u16; ROWS]) -> Floats {
        values.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline]
    fn f16_low(self, a: Words) -> Floats {
        a.map(|word| f16::from_bits(word as u16).to_f32_const())
    }
    #[inline]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline]
    fn fma_wide(self, a: Floats, b: Floats, c: Floats) -> Floats {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline]
    fn max_magnitude(self, values: &[[f32; 32]]) -> u32 {
        values.as_flattened().iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff))
    }
    #[inline]
    fn quantize(self, values: &[f32; 32], factor: f32, out: &mut [i8; 32]) -> [i32; 2] {
        for (out, value) in out.iter_mut().zip(values) {
            *out = (value * factor).round_ties_even() as i8;
        }
        let sum = |half: &[i8]| half.iter().map(|&value| i32::from(value)).sum();
        [sum(&out[..16]), sum(&out[16..])]
    }
}
