//! TQ2_0: ternary weights of two bits, and one scale.

use super::grid::{ScaledLevels, nearest};
use super::symmetric::{Integers, search_f16};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;

const LEVELS: Integers<-1, 1> = Integers;

/// 256 weights in 66 bytes.
///
/// ```text
/// byte  0..64  q − per 128 values 32 bytes: value 32k + i in bits 2k of byte i
///      64..66  scale, f16
/// value[i] = scale · (q[i] − 1)
/// ```
///
/// Source: `block_tq2_0` of ggml. Nobody writes q = 3; it is read as 2 · scale, as ggml does.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockTq2_0 {
    /// Codes.
    pub crumbs: [[u8; 32]; 2],
    /// Value of 1; either sign.
    pub scale: f16,
}

const _: () = assert!(size_of::<BlockTq2_0>() == 66);

/// The scale and codes of a block of 256.
pub(super) fn encode_ternary(values: &[f32], importance: Option<&[f32]>) -> (f16, [u16; 256]) {
    match weights::prepare::<256>(values, importance, f16::MAX.to_f32_const()) {
        Some((x, w)) => {
            let scale = search_f16(LEVELS, &x, &w);
            (scale, nearest(&ternary_grid(scale), &x, &w))
        }
        // Code 1 is zero.
        None => (f16::ZERO, [1; 256]),
    }
}

/// Values −1, 0 and 1 under one scale.
pub(super) type TernaryGrid = ScaledLevels<Integers<-1, 1>, 1, 256>;

pub(super) fn ternary_grid(scale: f16) -> TernaryGrid {
    ScaledLevels::new(LEVELS, [scale.to_f32()])
}

impl Block for BlockTq2_0 {
    const DTYPE: DType = DType::TQ2_0;
    const LEN: usize = 256;
    /// Half of the largest magnitude, and what rounding the scale to f16 adds.
    const ERROR: f32 = 0.501;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, codes) = encode_ternary(values, importance);
        Self { crumbs: [[0; 32]; 2], scale }.with_codes(&codes)
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let code = self.crumbs[i / 128][i % 32] >> (2 * (i / 32 % 4)) & 3;
            *out = scale * (f32::from(code) - 1.0);
        }
    }
}

impl Coded for BlockTq2_0 {
    type Grid = TernaryGrid;

    fn grid(&self) -> TernaryGrid {
        ternary_grid(self.scale)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { crumbs: packing::pack_crumbs(codes), ..self }
    }
}
