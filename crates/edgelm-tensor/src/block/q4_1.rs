//! Q4_1: 4 bits, a scale and a minimum.

use super::affine::{Pair, search_f16};
use super::grid::{ScaledSteps, nearest};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const HIGH: u8 = 15;

/// 32 weights in 20 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..4   min, f16
///      4..20  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · q[i] + min
/// ```
///
/// Source: `block_q4_1` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ4_1 {
    /// Value of one step.
    pub scale: f16,
    /// Value of code 0.
    pub min: f16,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl Block for BlockQ4_1 {
    const DTYPE: DType = DType::Q4_1;
    const LEN: usize = 32;
    /// Half of a 15th of the range, which is at most twice the largest value, and the rounding of both to f16.
    const ERROR: f32 = 1.0 / 14.5;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        // The range must not exceed 15 of the largest steps nor the minimum f16.
        let limit = f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, min: f16::ZERO, nibbles: [0; 16] };
        };
        let (scale, min) = search_f16(&x, &w, f32::from(HIGH));
        let block = Self { scale, min, nibbles: [0; 16] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (out, q) in out.iter_mut().zip(packing::unpack(&self.nibbles)) {
            *out = f32::from(q) * scale + min;
        }
    }
}

impl Coded for BlockQ4_1 {
    type Grid = ScaledSteps<HIGH, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledSteps::new([Pair { scale: self.scale.to_f32(), min: self.min.to_f32() }])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
