//! IQ2_XXS: eight values share a byte that indexes a codebook, and seven signs.

use super::codebook::{Codebook, ScaledVectors, Signed, apply_signs, even_signs};
use super::codebook_super::search_odd;
use super::grid::nearest;
use super::iq_grids::{IQ2_LEVELS, IQ2_XXS_GRID};
use super::{Block, Coded, weights};
use crate::DType;
use half::f16;
use std::sync::LazyLock;

static CODEBOOK: LazyLock<Codebook<4, 3>> = LazyLock::new(|| Codebook::new(IQ2_LEVELS, &IQ2_XXS_GRID));

/// Scales of the IQ2 formats are odd multiples of this part of d.
pub(super) const PART: f32 = 1.0 / 8.0;

/// 256 weights in 66 bytes: 8 sub-blocks of 32, 32 vectors of 8.
///
/// ```text
/// byte 0..2   d, f16
///      2..66  8 bytes per sub-block: four bytes index[v], and a little-endian word: bit 7k + i is set where value 8k + i is
///             negative, for i up to 6 (the number of negative values among eight is even); bits 28..32 are s[j]
/// value[8v + i] = ± d / 8 · (2 · s[v / 4] + 1) · level[IQ2_XXS_GRID[index[v]][i]]
/// ```
///
/// Source: `block_iq2_xxs` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq2Xxs {
    /// Scale of the scales.
    pub d: f16,
    /// Indices, and signs with the code of the scale, of each sub-block.
    pub subs: [[[u8; 4]; 2]; 8],
}

const _: () = assert!(size_of::<BlockIq2Xxs>() == 66);

impl BlockIq2Xxs {
    fn words(&self) -> [u32; 8] {
        self.subs.map(|sub| u32::from_le_bytes(sub[1]))
    }

    fn sub_scales(&self) -> [f32; 8] {
        self.words().map(|word| self.d.to_f32() * PART * (2 * (word >> 28) + 1) as f32)
    }
}

impl Block for BlockIq2Xxs {
    const DTYPE: DType = DType::IQ2_XXS;
    const LEN: usize = 256;
    /// Measured: 0.31 at most on hostile blocks (a few magnitudes far apart, spikes, offsets), of which a codebook has no
    /// pattern; and some room.
    const ERROR: f32 = 0.42;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let limit = PART * 31.0 * 43.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let vectors = Signed(&*CODEBOOK);
        let fit = search_odd::<Signed<1, true, 4, 3>, 8, 32>(vectors, PART, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.subs = fit.codes.map(|code| [[0; 4], (u32::from(code) << 28).to_le_bytes()]);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let (words, scales) = (self.words(), self.sub_scales());
        for (v, out) in out.chunks_exact_mut(8).enumerate() {
            let index = self.subs[v / 4][0][v % 4];
            for (out, magnitude) in out.iter_mut().zip(CODEBOOK.magnitudes(u16::from(index))) {
                *out = scales[v / 4] * magnitude;
            }
            apply_signs(even_signs((words[v / 4] >> (7 * (v % 4)) & 127) as u16), out);
        }
    }
}

impl Coded for BlockIq2Xxs {
    type Grid = ScaledVectors<Signed<1, true, 4, 3>, 8, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledVectors::new(Signed(&CODEBOOK), self.sub_scales())
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        let mut words = self.words().map(|word| word & 15 << 28);
        for (v, codes) in codes.chunks_exact(8).enumerate() {
            self.subs[v / 4][0][v % 4] = codes[0] as u8;
            words[v / 4] |= u32::from(codes[1] & 127) << (7 * (v % 4));
        }
        for (sub, word) in self.subs.iter_mut().zip(words) {
            sub[1] = word.to_le_bytes();
        }
        self
    }
}
