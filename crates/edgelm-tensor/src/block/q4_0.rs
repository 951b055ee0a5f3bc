//! Q4_0: 4 bits and one scale.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::{Integers, search_f16};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const LEVELS: Integers<-8, 7> = Integers;

/// 32 weights in 18 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..18  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · (q[i] − 8)
/// ```
///
/// The scale may be negative: that is how the end with 8 steps comes to lie on the side of the largest value.
/// Source: `block_q4_0` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ4_0 {
    /// Value of one step.
    pub scale: f16,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Block for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;
    const LEN: usize = 32;
    /// Half a step where 7½ steps reach the largest value.
    const ERROR: f32 = 1.0 / 15.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let limit = 8.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, nibbles: [0x88; 16] };
        };
        let block = Self { scale: search_f16(LEVELS, &x, &w), nibbles: [0; 16] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(packing::unpack(&self.nibbles)) {
            *out = (f32::from(q) - 8.0) * scale;
        }
    }
}

impl Coded for BlockQ4_0 {
    type Grid = ScaledLevels<Integers<-8, 7>, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(LEVELS, [self.scale.to_f32()])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
