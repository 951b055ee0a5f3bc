//! IQ4_NL: 4 bits that index a fixed table, and one scale.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::{Levels, search_f16};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

/// What the codes of IQ4_NL and IQ4_XS mean: denser near zero, as weights are.
/// Source: `kvalues_iq4nl` of ggml.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Half way between neighbouring values.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = (IQ4_VALUES[i] as f32 + IQ4_VALUES[i + 1] as f32) / 2.0;
        i += 1;
    }
    borders
};

/// The levels of `IQ4_VALUES`.
#[derive(Clone, Copy)]
pub struct Iq4Levels;

impl Levels for Iq4Levels {
    const LOW: f32 = IQ4_VALUES[0] as f32;
    const HIGH: f32 = IQ4_VALUES[15] as f32;
    const RANGE: (f32, f32) = (-24.0, 40.0);

    // A sum of steps instead of a search: it has no branches and vectorizes.
    fn nearest(self, t: f32) -> f32 {
        let mut level = Self::LOW;
        for i in 0..15 {
            level += if t > BORDERS[i] { f32::from(IQ4_VALUES[i + 1]) - f32::from(IQ4_VALUES[i]) } else { 0.0 };
        }
        level
    }

    fn code(self, t: f32) -> u8 {
        BORDERS.iter().filter(|border| t > **border).count() as u8
    }

    fn level(self, code: u8) -> f32 {
        f32::from(IQ4_VALUES[usize::from(code)])
    }

    fn border(self, code: u8) -> f32 {
        BORDERS[usize::from(code)]
    }
}

/// 32 weights in 18 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..18  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · IQ4_VALUES[q[i]]
/// ```
///
/// Source: `block_iq4_nl` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq4Nl {
    /// Factor of the table; either sign.
    pub scale: f16,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == 18);

impl Block for BlockIq4Nl {
    const DTYPE: DType = DType::IQ4_NL;
    const LEN: usize = 32;
    /// Half of the widest gap, 24, where 125 reaches the largest value.
    const ERROR: f32 = 12.0 / 124.5;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let limit = 113.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<32>(values, importance, limit) else {
            return Self { scale: f16::ZERO, nibbles: [0x88; 16] };
        };
        let block = Self { scale: search_f16(Iq4Levels, &x, &w), nibbles: [0; 16] };
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (out, q) in out.iter_mut().zip(packing::unpack(&self.nibbles)) {
            *out = f32::from(IQ4_VALUES[usize::from(q)]) * scale;
        }
    }
}

impl Coded for BlockIq4Nl {
    type Grid = ScaledLevels<Iq4Levels, 1, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(Iq4Levels, [self.scale.to_f32()])
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
