//! Q5_1: 5 bits, a scale and a minimum.

use super::affine::{Pair, search_f16};
use super::grid::{ScaledSteps, nearest};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const HIGH: u8 = 31;

/// 32 weights in 24 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..4   min, f16
///      4..8   fifth bits: bit i of the little-endian word is bit 4 of q[i]
///      8..24  low four bits of q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · q[i] + min
/// ```
///
/// Source: `block_q5_1` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ5_1 {
    /// Value of one step.
    pub scale: f16,
    /// Value of code 0.
    pub min: f16,
    /// Bit 4 of every code.
    pub fifth_bits: [u8; 4],
    /// Low four bits of the codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_1>() == 24);

impl Block for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;
    const LEN: usize = 32;
    /// Half of a 31st of the range, which is at most twice the largest value, and the rounding of both to f16.
    const ERROR: f32 = 1.0 / 30.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let limit = f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, min: f16::ZERO, fifth_bits: [0; 4], nibbles: [0; 16] };
        };
        let (scale, min) = search_f16(&x, &w, f32::from(HIGH));
        let block = Self { scale, min, fifth_bits: [0; 4], nibbles: [0; 16] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (out, q) in out.iter_mut().zip(packing::unpack_five(&self.nibbles, self.fifth_bits)) {
            *out = f32::from(q) * scale + min;
        }
    }
}

impl Coded for BlockQ5_1 {
    type Grid = ScaledSteps<HIGH, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledSteps::new([Pair { scale: self.scale.to_f32(), min: self.min.to_f32() }])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self {
            fifth_bits: packing::pack_fifth(&packing::small(codes)),
            nibbles: packing::pack(&packing::small(codes)),
            ..self
        }
    }
}
