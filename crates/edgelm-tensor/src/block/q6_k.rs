//! Q6_K: 6 bits, with 8-bit scales of sub-blocks.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::Integers;
use super::symmetric_super::search_super;
use super::{Block, Coded, weights};
use crate::DType;
use half::f16;

const LEVELS: Integers<-32, 31> = Integers;

/// 256 weights in 210 bytes: 16 sub-blocks of 16.
///
/// ```text
/// byte 0..128    low four bits of q − 64 bytes per 128 values: byte i holds values i (low half) and i + 64 (high half)
///      128..192  upper two bits of q − 32 bytes per 128 values: byte i holds values i, i + 32, i + 64, i + 96 from the
///                lowest bits up
///      192..208  s, i8
///      208..210  d, f16
/// value[16j + i] = d · s[j] · (q[16j + i] − 32)
/// ```
///
/// Source: `block_q6_K` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ6K {
    /// Low four bits of the codes, two per byte.
    pub nibbles: [[u8; 64]; 2],
    /// Upper two bits of the codes, four per byte.
    pub crumbs: [[u8; 32]; 2],
    /// Codes of the scales.
    pub scales: [i8; 16],
    /// Scale of the scales; either sign.
    pub d: f16,
}

const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl Block for BlockQ6K {
    const DTYPE: DType = DType::Q6_K;
    const LEN: usize = 256;
    /// Half a step where 31½ steps reach the largest value, with scales rounded to 128 steps of the largest.
    const ERROR: f32 = 0.0175;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block = Self { nibbles: [[0; 64]; 2], crumbs: [[0; 32]; 2], scales: [0; 16], d: f16::ZERO };
        let limit = 127.0 * 32.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let fit = search_super::<_, 16, 16, -128, 127>(LEVELS, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.scales = fit.codes.map(|code| code as i8);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let low = self.nibbles[i / 128][i % 64] >> (4 * (i / 64 % 2)) & 15;
            let high = self.crumbs[i / 128][i % 32] >> (2 * (i / 32 % 4)) & 3;
            *out = d * f32::from(self.scales[i / 16]) * (f32::from(low | high << 4) - 32.0);
        }
    }
}

impl Coded for BlockQ6K {
    type Grid = ScaledLevels<Integers<-32, 31>, 16, 16>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(LEVELS, self.scales.map(|scale| self.d.to_f32() * f32::from(scale)))
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        (self.nibbles, self.crumbs) = ([[0; 64]; 2], [[0; 32]; 2]);
        for (i, &code) in codes.iter().enumerate() {
            self.nibbles[i / 128][i % 64] |= ((code & 15) << (4 * (i / 64 % 2))) as u8;
            self.crumbs[i / 128][i % 32] |= ((code >> 4) << (2 * (i / 32 % 4))) as u8;
        }
        self
    }
}
