//! Q4_K: 4 bits, with 6-bit scales and minimums of sub-blocks.

use super::affine::Pair;
use super::affine_super::search_super;
use super::grid::{ScaledSteps, nearest};
use super::k_scales::{pack_k_scales, unpack_k_scales};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const HIGH: u8 = 15;
/// Codes to give the largest scale at the start of a descent.
const STARTS: [f32; 2] = [63.0, 61.0];

/// 256 weights in 144 bytes: 8 sub-blocks of 32.
///
/// ```text
/// byte 0..2     d, f16
///      2..4     dmin, f16
///      4..16    s[0..8] and m[0..8], see `k_scales`
///      16..144  q − 32 bytes per pair of sub-blocks: the even one in the low halves, the odd one in the high halves
/// value[32j + i] = d · s[j] · q[32j + i] − dmin · m[j]
/// ```
///
/// Source: `block_q4_K` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ4K {
    /// Scale of the scales.
    pub d: f16,
    /// Scale of the minimums.
    pub dmin: f16,
    /// Packed codes of scales and minimums.
    pub scales: [u8; 12],
    /// Codes, two per byte.
    pub nibbles: [[u8; 32]; 4],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144);

impl Block for BlockQ4K {
    const DTYPE: DType = DType::Q4_K;
    const LEN: usize = 256;
    /// Half of a 15th of the range, which is at most twice the largest value, and the rounding of the minimums.
    const ERROR: f32 = 0.08;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block = Self { d: f16::ZERO, dmin: f16::ZERO, scales: [0; 12], nibbles: [[0; 32]; 4] };
        let limit = 63.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let fit = search_super::<8, 32, 63>(&bytemuck::cast(x), &bytemuck::cast(w), f32::from(HIGH), &STARTS);
        block.d = fit.d;
        block.dmin = fit.dmin;
        block.scales = pack_k_scales(&fit.scales, &fit.mins);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = unpack_k_scales(&self.scales);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
            for (out, byte) in out.iter_mut().zip(self.nibbles[j / 2]) {
                *out = scale * f32::from(byte >> (4 * (j % 2)) & 15) - min;
            }
        }
    }
}

impl Coded for BlockQ4K {
    type Grid = ScaledSteps<HIGH, 8, 32>;

    fn grid(&self) -> Self::Grid {
        let (scales, mins) = unpack_k_scales(&self.scales);
        let pair = |j: usize| Pair {
            scale: self.d.to_f32() * f32::from(scales[j]),
            min: -(self.dmin.to_f32() * f32::from(mins[j])),
        };
        ScaledSteps::new(std::array::from_fn(pair))
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        self.nibbles = packing::pack_pairs(codes);
        self
    }
}
