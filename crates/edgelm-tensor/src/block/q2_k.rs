//! Q2_K: 2 bits, with 4-bit scales and minimums of sub-blocks.

use super::affine::Pair;
use super::affine_super::search_super;
use super::grid::{ScaledSteps, nearest};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const HIGH: u8 = 3;
/// Codes to give the largest scale at the start of a descent. With so few codes, which multiples of d are at hand
/// matters more than that the largest scale uses the last one.
const STARTS: [f32; 4] = [15.0, 14.0, 13.0, 12.0];

/// 256 weights in 84 bytes: 16 sub-blocks of 16.
///
/// ```text
/// byte 0..16   s[j] in the low half, m[j] in the high half of byte j
///      16..80  q − 32 bytes per 128 values: byte i holds values i, i + 32, i + 64, i + 96 from the lowest bits up
///      80..82  d, f16
///      82..84  dmin, f16
/// value[16j + i] = d · s[j] · q[16j + i] − dmin · m[j]
/// ```
///
/// Source: `block_q2_K` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockQ2K {
    /// Codes of scale (low half) and minimum (high half).
    pub scales: [u8; 16],
    /// Codes, four per byte.
    pub crumbs: [[u8; 32]; 2],
    /// Scale of the scales.
    pub d: f16,
    /// Scale of the minimums.
    pub dmin: f16,
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);

impl Block for BlockQ2K {
    const DTYPE: DType = DType::Q2_K;
    const LEN: usize = 256;
    /// Half of a third of the range, which is at most twice the largest value, and the rounding of the minimums.
    const ERROR: f32 = 0.38;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block = Self { scales: [0; 16], crumbs: [[0; 32]; 2], d: f16::ZERO, dmin: f16::ZERO };
        let limit = 15.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let fit = search_super::<16, 16, 15>(&bytemuck::cast(x), &bytemuck::cast(w), f32::from(HIGH), &STARTS);
        block.d = fit.d;
        block.dmin = fit.dmin;
        block.scales = std::array::from_fn(|j| fit.scales[j] | fit.mins[j] << 4);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let codes = self.scales[i / 16];
            let (scale, min) = (d * f32::from(codes & 15), dmin * f32::from(codes >> 4));
            let q = self.crumbs[i / 128][i % 32] >> (2 * (i / 32 % 4)) & 3;
            *out = scale * f32::from(q) - min;
        }
    }
}

impl Coded for BlockQ2K {
    type Grid = ScaledSteps<HIGH, 16, 16>;

    fn grid(&self) -> Self::Grid {
        let pair = |codes: u8| Pair {
            scale: self.d.to_f32() * f32::from(codes & 15),
            min: -(self.dmin.to_f32() * f32::from(codes >> 4)),
        };
        ScaledSteps::new(self.scales.map(pair))
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        self.crumbs = packing::pack_crumbs(codes);
        self
    }
}
