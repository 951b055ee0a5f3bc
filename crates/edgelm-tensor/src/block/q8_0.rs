//! Q8_0: 8 bits and one scale.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::{Integers, search_f16};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

/// −128 is left out: dot products that multiply |a| · sign(a)·b overflow on it.
const LEVELS: Integers<-127, 127> = Integers;

/// 32 weights in 34 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..34  q, i8
/// value[i] = scale · q[i]
/// ```
///
/// Source: `block_q8_0` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ8_0 {
    /// Value of one step.
    pub scale: f16,
    /// Codes.
    pub codes: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Block for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;
    const LEN: usize = 32;
    /// Half a step where 127 steps reach the largest value, and the rounding of the scale to f16.
    const ERROR: f32 = 1.0 / 250.0;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let limit = 127.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, codes: [0; 32] };
        };
        let block = Self { scale: search_f16(LEVELS, &x, &w), codes: [0; 32] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(self.codes) {
            *out = f32::from(q) * scale;
        }
    }
}

impl Coded for BlockQ8_0 {
    type Grid = ScaledLevels<Integers<-127, 127>, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(LEVELS, [self.scale.to_f32()])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { codes: packing::small(codes).map(|code| (i16::from(code) - 127) as i8), ..self }
    }
}
