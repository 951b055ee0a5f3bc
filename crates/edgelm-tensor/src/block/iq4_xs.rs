//! IQ4_XS: IQ4_NL with one f16 scale for eight sub-blocks and a 6-bit scale for each.

use super::grid::{ScaledLevels, nearest};
use super::iq4_nl::{IQ4_VALUES, Iq4Levels};
use super::symmetric_super::search_super;
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

/// 256 weights in 136 bytes: 8 sub-blocks of 32.
///
/// ```text
/// byte 0..2    d, f16
///      2..4    upper two bits of s[j] in bits 2j and 2j + 1 of a little-endian word
///      4..8    lower four bits of s[j] − byte j/2, even j in the low half
///      8..136  q − 16 bytes per sub-block, each: value i in the low half, value i + 16 in the high half
/// value[32j + i] = d · (s[j] − 32) · IQ4_VALUES[q[32j + i]]
/// ```
///
/// Source: `block_iq4_xs` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq4Xs {
    /// Scale of the scales; either sign.
    pub d: f16,
    /// Upper two bits of the scale codes.
    pub scales_high: u16,
    /// Lower four bits of the scale codes.
    pub scales_low: [u8; 4],
    /// Codes, two per byte.
    pub nibbles: [[u8; 16]; 8],
}

const _: () = assert!(size_of::<BlockIq4Xs>() == 136);

impl BlockIq4Xs {
    /// `s[j] − 32` for the eight sub-blocks.
    pub fn scale_codes(&self) -> [i32; 8] {
        std::array::from_fn(|j| {
            let low = self.scales_low[j / 2] >> (4 * (j % 2)) & 15;
            let high = (self.scales_high >> (2 * j) & 3) as u8;
            i32::from(low | high << 4) - 32
        })
    }
}

impl Block for BlockIq4Xs {
    const DTYPE: DType = DType::IQ4_XS;
    const LEN: usize = 256;
    /// As IQ4_NL, with scales rounded to 32 steps of the largest.
    const ERROR: f32 = 0.105;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block = Self { d: f16::ZERO, scales_high: 0, scales_low: [0; 4], nibbles: [[0; 16]; 8] };
        let limit = 31.0 * 113.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let fit = search_super::<_, 8, 32, -32, 31>(Iq4Levels, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        for j in 0..8 {
            let code = (fit.codes[j] + 32) as u8;
            block.scales_low[j / 2] |= (code & 15) << (4 * (j % 2));
            block.scales_high |= u16::from(code >> 4) << (2 * j);
        }
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let d = self.d.to_f32();
        for ((out, nibbles), code) in out.chunks_exact_mut(32).zip(&self.nibbles).zip(self.scale_codes()) {
            let scale = d * code as f32;
            for (out, q) in out.iter_mut().zip(packing::unpack(nibbles)) {
                *out = scale * f32::from(IQ4_VALUES[usize::from(q)]);
            }
        }
    }
}

impl Coded for BlockIq4Xs {
    type Grid = ScaledLevels<Iq4Levels, 8, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledLevels::new(Iq4Levels, self.scale_codes().map(|code| self.d.to_f32() * code as f32))
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        for (nibbles, codes) in self.nibbles.iter_mut().zip(codes.chunks_exact(32)) {
            *nibbles = packing::pack(&packing::small(codes));
        }
        self
    }
}
