//! Q3_K: 3 bits, with 6-bit scales of sub-blocks.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::Integers;
use super::symmetric_super::search_super;
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const LEVELS: Integers<-4, 3> = Integers;

/// 256 weights in 110 bytes: 16 sub-blocks of 16.
///
/// ```text
/// byte 0..32     third bits: bit k of byte i is bit 2 of q[32k + i]
///      32..96    low two bits of q − 32 bytes per 128 values: byte i holds values i, i + 32, i + 64, i + 96 from the
///                lowest bits up
///      96..108   s: byte j (0..8) holds the low four bits of s[j] and of s[j + 8]; byte 8 + j (0..4) holds the upper
///                two bits of s[j], s[j + 4], s[j + 8], s[j + 12] from the lowest bits up
///      108..110  d, f16
/// value[16j + i] = d · (s[j] − 32) · (q[16j + i] − 4)
/// ```
///
/// Source: `block_q3_K` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ3K {
    /// Bit 2 of every code.
    pub third_bits: [u8; 32],
    /// Low two bits of the codes, four per byte.
    pub crumbs: [[u8; 32]; 2],
    /// Packed codes of the scales.
    pub scales: [u8; 12],
    /// Scale of the scales; either sign.
    pub d: f16,
}

const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl BlockQ3K {
    /// `s[j] − 32` for the sixteen sub-blocks.
    pub fn scale_codes(&self) -> [i32; 16] {
        std::array::from_fn(|j| {
            let low = self.scales[j % 8] >> (4 * (j / 8)) & 15;
            let high = self.scales[8 + j % 4] >> (2 * (j / 4)) & 3;
            i32::from(low | high << 4) - 32
        })
    }
}

impl Block for BlockQ3K {
    const DTYPE: DType = DType::Q3_K;
    const LEN: usize = 256;
    /// Half a step where 3½ steps reach the largest value, with scales rounded to 32 steps of the largest.
    const ERROR: f32 = 0.155;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block = Self { third_bits: [0; 32], crumbs: [[0; 32]; 2], scales: [0; 12], d: f16::ZERO };
        let limit = 31.0 * 4.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let fit = search_super::<_, 16, 16, -32, 31>(LEVELS, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        for j in 0..16 {
            let code = (fit.codes[j] + 32) as u8;
            block.scales[j % 8] |= (code & 15) << (4 * (j / 8));
            block.scales[8 + j % 4] |= (code >> 4) << (2 * (j / 4));
        }
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let d = self.d.to_f32();
        let scales = self.scale_codes();
        for (i, out) in out.iter_mut().enumerate() {
            let low = self.crumbs[i / 128][i % 32] >> (2 * (i / 32 % 4)) & 3;
            let third = self.third_bits[i % 32] >> (i / 32) & 1;
            *out = d * scales[i / 16] as f32 * (f32::from(low | third << 2) - 4.0);
        }
    }
}

impl Coded for BlockQ3K {
    type Grid = ScaledLevels<Integers<-4, 3>, 16, 16>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(LEVELS, self.scale_codes().map(|code| self.d.to_f32() * code as f32))
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        self.crumbs = packing::pack_crumbs(codes);
        self.third_bits = packing::pack_bit(codes, 2);
        self
    }
}
