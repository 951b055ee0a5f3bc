//! Q5_0: 5 bits and one scale.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::{Integers, search_f16};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const LEVELS: Integers<-16, 15> = Integers;

/// 32 weights in 22 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..6   fifth bits: bit i of the little-endian word is bit 4 of q[i]
///      6..22  low four bits of q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · (q[i] − 16)
/// ```
///
/// Source: `block_q5_0` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ5_0 {
    /// Value of one step; either sign.
    pub scale: f16,
    /// Bit 4 of every code.
    pub fifth_bits: [u8; 4],
    /// Low four bits of the codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Block for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;
    const LEN: usize = 32;
    /// Half a step where 15½ steps reach the largest value.
    const ERROR: f32 = 1.0 / 31.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let limit = 16.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, fifth_bits: [0xff; 4], nibbles: [0; 16] };
        };
        let block = Self { scale: search_f16(LEVELS, &x, &w), fifth_bits: [0; 4], nibbles: [0; 16] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(packing::unpack_five(&self.nibbles, self.fifth_bits)) {
            *out = (f32::from(q) - 16.0) * scale;
        }
    }
}

impl Coded for BlockQ5_0 {
    type Grid = ScaledLevels<Integers<-16, 15>, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(LEVELS, [self.scale.to_f32()])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self {
            fifth_bits: packing::pack_fifth(&packing::small(codes)),
            nibbles: packing::pack(&packing::small(codes)),
            ..self
        }
    }
}
