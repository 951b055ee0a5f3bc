//! IQ2_XS: eight values share 9 bits that index a codebook, and seven signs.

use super::codebook::{Codebook, ScaledVectors, Signed, apply_signs, even_signs};
use super::codebook_super::search_odd;
use super::grid::nearest;
use super::iq_grids::{IQ2_LEVELS, IQ2_XS_GRID};
use super::iq2_xxs::PART;
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;
use std::sync::LazyLock;

static CODEBOOK: LazyLock<Codebook<4, 3>> = LazyLock::new(|| Codebook::new(IQ2_LEVELS, &IQ2_XS_GRID));

/// 256 weights in 74 bytes: 16 sub-blocks of 16, 32 vectors of 8.
///
/// ```text
/// byte 0..2    d, f16
///      2..66   a little-endian half word per vector: bits 0..9 are index[v], and bit 9 + i is set where value 8v + i is
///              negative, for i up to 6 (the number of negative values among eight is even)
///      66..74  s[j] − byte j/2, even j in the low half
/// value[8v + i] = ± d / 8 · (2 · s[v / 2] + 1) · level[IQ2_XS_GRID[index[v]][i]]
/// ```
///
/// Source: `block_iq2_xs` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq2Xs {
    /// Scale of the scales.
    pub d: f16,
    /// Indices and signs.
    pub vectors: [u16; 32],
    /// Codes of the scales, two per byte.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2Xs>() == 74);

impl BlockIq2Xs {
    fn sub_scales(&self) -> [f32; 16] {
        packing::nibbles(&self.scales).map(|code| self.d.to_f32() * PART * f32::from(2 * code + 1))
    }
}

impl Block for BlockIq2Xs {
    const DTYPE: DType = DType::IQ2_XS;
    const LEN: usize = 256;
    /// Measured: 0.24 at most on hostile blocks (a few magnitudes far apart, spikes, offsets), of which a codebook has no
    /// pattern; and some room.
    const ERROR: f32 = 0.33;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let limit = PART * 31.0 * 43.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let vectors = Signed(&*CODEBOOK);
        let fit = search_odd::<Signed<1, true, 4, 3>, 16, 16>(vectors, PART, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.scales = packing::pack_nibbles(&fit.codes);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scales = self.sub_scales();
        for (v, out) in out.chunks_exact_mut(8).enumerate() {
            for (out, magnitude) in out.iter_mut().zip(CODEBOOK.magnitudes(self.vectors[v] & 511)) {
                *out = scales[v / 2] * magnitude;
            }
            apply_signs(even_signs(self.vectors[v] >> 9), out);
        }
    }
}

impl Coded for BlockIq2Xs {
    type Grid = ScaledVectors<Signed<1, true, 4, 3>, 16, 16>;

    fn grid(&self) -> Self::Grid {
        ScaledVectors::new(Signed(&CODEBOOK), self.sub_scales())
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        for (vector, codes) in self.vectors.iter_mut().zip(codes.chunks_exact(8)) {
            *vector = codes[0] & 511 | codes[1] << 9;
        }
        self
    }
}
