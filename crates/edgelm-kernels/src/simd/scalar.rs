//! The definition: sixteen f32 in an array.

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                lanes[lane] = f(lanes[lane], lanes[lane + width]);
            }
        }
        lanes[0]
    }
}

impl Lanes for Scalar {
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        // Without branches, so that the compiler vectorizes it: the exponent's bias moves by 112 in a multiplication, which
        // takes care of subnormal numbers too; infinity and NaN get the largest exponent back.
        Self(from.map(|half| {
            let magnitude = u32::from(half & 0x7FFF) << 13;
            let infinite = if magnitude >= 0x0F80_0000 { 0x7F80_0000 } else { 0 };
            let value = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits() | infinite;
            f32::from_bits(value | u32::from(half & 0x8000) << 16)
        }))
    }
    #[inline(always)]
    fn load_i32(from: &[u32; LANES]) -> Self {
        Self(from.map(|word| word as i32 as f32))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; LANES]) {
        // The sum with 1.5 · 2²³ holds the integer in its low bits.
        *to = self.0.map(|x| (x + 12_582_912.0).to_bits() as u8);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Below 2²² in magnitude, adding and taking away 1.5 · 2²³ rounds to an integer; without SSE4.1 the library call
        // that `round_ties_even` makes costs more than the rest of exp.
        const SHIFT: f32 = 12_582_912.0;
        Self(self.0.map(|x| if x.abs() < 4_194_304.0 { (x + SHIFT) - SHIFT } else { x }))
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        self.mul(n.exp2_integer())
    }
    #[inline(always)]
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let pick = |lane: usize| if self.0[lane] < bound.0[lane] { then.0[lane] } else { otherwise.0[lane] };
        Self(std::array::from_fn(pick))
    }
    #[inline(always)]
    fn keep(self, from: i32, to: i32, fill: f32) -> Self {
        let pick = |lane: usize| if (from..to).contains(&(lane as i32)) { self.0[lane] } else { fill };
        Self(std::array::from_fn(pick))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
}
