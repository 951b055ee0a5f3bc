//! IQ3_XXS: four values share a byte that indexes a codebook, and eight of them seven signs.

use super::codebook::{Codebook, ScaledVectors, Signed, apply_signs, even_signs};
use super::codebook_super::search_odd;
use super::grid::nearest;
use super::iq_grids::{IQ3_XXS_GRID, IQ3_XXS_LEVELS};
use super::{Block, Coded, weights};
use crate::DType;
use half::f16;
use std::sync::LazyLock;

static CODEBOOK: LazyLock<Codebook<2, 8>> = LazyLock::new(|| Codebook::new(IQ3_XXS_LEVELS, &IQ3_XXS_GRID));

/// Scales are odd multiples of this part of d.
const PART: f32 = 1.0 / 4.0;

/// 256 weights in 98 bytes: 8 sub-blocks of 32, 64 vectors of 4.
///
/// ```text
/// byte 0..2    d, f16
///      2..66   index[v], a byte each
///      66..98  a little-endian word per sub-block: bit 7k + i is set where value 8k + i is negative, for i up to 6 (the
///              number of negative values among eight is even); bits 28..32 are s[j]
/// value[4v + i] = ± d / 4 · (2 · s[v / 8] + 1) · level[IQ3_XXS_GRID[index[v]][i]]
/// ```
///
/// Source: `block_iq3_xxs` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq3Xxs {
    /// Scale of the scales.
    pub d: f16,
    /// Indices.
    pub indices: [u8; 64],
    /// Signs and the code of the scale, a word per sub-block.
    pub signs_and_scale: [[u8; 4]; 8],
}

const _: () = assert!(size_of::<BlockIq3Xxs>() == 98);

impl BlockIq3Xxs {
    fn words(&self) -> [u32; 8] {
        self.signs_and_scale.map(u32::from_le_bytes)
    }

    fn sub_scales(&self) -> [f32; 8] {
        self.words().map(|word| self.d.to_f32() * PART * (2 * (word >> 28) + 1) as f32)
    }
}

impl Block for BlockIq3Xxs {
    const DTYPE: DType = DType::IQ3_XXS;
    const LEN: usize = 256;
    /// Measured: 0.18 at most on hostile blocks (a few magnitudes far apart, spikes, offsets), of which a codebook has no
    /// pattern; and some room.
    const ERROR: f32 = 0.25;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let limit = PART * 31.0 * 62.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let vectors = Signed(&*CODEBOOK);
        let fit = search_odd::<Signed<2, true, 2, 8>, 8, 32>(vectors, PART, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.signs_and_scale = fit.codes.map(|code| (u32::from(code) << 28).to_le_bytes());
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (words, scales) = (self.words(), self.sub_scales());
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let magnitudes = self.indices[2 * k..2 * k + 2].iter().flat_map(|i| CODEBOOK.magnitudes(u16::from(*i)));
            for (out, magnitude) in out.iter_mut().zip(magnitudes) {
                *out = scales[k / 4] * magnitude;
            }
            apply_signs(even_signs((words[k / 4] >> (7 * (k % 4)) & 127) as u16), out);
        }
    }
}

impl Coded for BlockIq3Xxs {
    type Grid = ScaledVectors<Signed<2, true, 2, 8>, 8, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledVectors::new(Signed(&CODEBOOK), self.sub_scales())
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        let mut words = self.words().map(|word| word & 15 << 28);
        for (k, codes) in codes.chunks_exact(8).enumerate() {
            self.indices[2 * k..2 * k + 2].copy_from_slice(&[codes[0] as u8, codes[1] as u8]);
            words[k / 4] |= u32::from(codes[2] & 127) << (7 * (k % 4));
        }
        self.signs_and_scale = words.map(u32::to_le_bytes);
        self
    }
}
