//! IQ2_S: eight values share 10 bits that index a codebook, and have a sign each.

use super::codebook::{Codebook, ScaledVectors, Signed, apply_signs};
use super::codebook_super::search_odd;
use super::grid::nearest;
use super::iq_grids::{IQ2_LEVELS, IQ2_S_GRID};
use super::iq2_xxs::PART;
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;
use std::sync::LazyLock;

static CODEBOOK: LazyLock<Codebook<4, 3>> = LazyLock::new(|| Codebook::new(IQ2_LEVELS, &IQ2_S_GRID));

/// 256 weights in 82 bytes: 16 sub-blocks of 16, 32 vectors of 8.
///
/// ```text
/// byte 0..2    d, f16
///      2..34   low eight bits of index[v], a byte each
///      34..66  signs: bit i of byte v is set where value 8v + i is negative
///      66..74  upper two bits of index[v] in bits 2 · (v mod 4) and above of byte v / 4
///      74..82  s[j] − byte j/2, even j in the low half
/// value[8v + i] = ± d / 8 · (2 · s[v / 2] + 1) · level[IQ2_S_GRID[index[v]][i]]
/// ```
///
/// Source: `block_iq2_s` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq2S {
    /// Scale of the scales.
    pub d: f16,
    /// Low eight bits of the indices.
    pub indices: [u8; 32],
    /// Signs, eight per byte.
    pub signs: [u8; 32],
    /// Upper two bits of the indices.
    pub upper_bits: [u8; 8],
    /// Codes of the scales, two per byte.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2S>() == 82);

impl BlockIq2S {
    fn sub_scales(&self) -> [f32; 16] {
        packing::nibbles(&self.scales).map(|code| self.d.to_f32() * PART * f32::from(2 * code + 1))
    }
}

impl Block for BlockIq2S {
    const DTYPE: DType = DType::IQ2_S;
    const LEN: usize = 256;
    /// Measured: 0.23 at most on hostile blocks (a few magnitudes far apart, spikes, offsets), of which a codebook has no
    /// pattern; and some room.
    const ERROR: f32 = 0.32;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let limit = PART * 31.0 * 43.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let vectors = Signed(&*CODEBOOK);
        let fit = search_odd::<Signed<1, false, 4, 3>, 16, 16>(vectors, PART, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.scales = packing::pack_nibbles(&fit.codes);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scales = self.sub_scales();
        for (v, out) in out.chunks_exact_mut(8).enumerate() {
            let upper = u16::from(self.upper_bits[v / 4] >> (2 * (v % 4)) & 3);
            let index = u16::from(self.indices[v]) | upper << 8;
            for (out, magnitude) in out.iter_mut().zip(CODEBOOK.magnitudes(index)) {
                *out = scales[v / 2] * magnitude;
            }
            apply_signs(u16::from(self.signs[v]), out);
        }
    }
}

impl Coded for BlockIq2S {
    type Grid = ScaledVectors<Signed<1, false, 4, 3>, 16, 16>;

    fn grid(&self) -> Self::Grid {
        ScaledVectors::new(Signed(&CODEBOOK), self.sub_scales())
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        self.upper_bits = [0; 8];
        for (v, codes) in codes.chunks_exact(8).enumerate() {
            self.indices[v] = codes[0] as u8;
            self.upper_bits[v / 4] |= ((codes[0] >> 8 & 3) as u8) << (2 * (v % 4));
            self.signs[v] = codes[1] as u8;
        }
        self
    }
}
