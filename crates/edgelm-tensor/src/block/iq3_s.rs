//! IQ3_S: four values share 9 bits that index a codebook, and have a sign each.

use super::codebook::{Codebook, ScaledVectors, Signed, apply_signs};
use super::codebook_super::search_odd;
use super::grid::nearest;
use super::iq_grids::{IQ3_S_GRID, IQ3_S_LEVELS};
use super::{Block, Coded, packing, weights};
use crate::DType;
use half::f16;
use std::sync::LazyLock;

static CODEBOOK: LazyLock<Codebook<2, 8>> = LazyLock::new(|| Codebook::new(IQ3_S_LEVELS, &IQ3_S_GRID));

/// 256 weights in 110 bytes: 8 sub-blocks of 32, 64 vectors of 4.
///
/// ```text
/// byte 0..2      d, f16
///      2..66     low eight bits of index[v], a byte each
///      66..74    ninth bits: bit v mod 8 of byte v / 8 is that of index[v]
///      74..106   signs: bit i mod 8 of byte i / 8 is set where value i is negative
///      106..110  s[j] − byte j/2, even j in the low half
/// value[4v + i] = ± d · (2 · s[v / 8] + 1) · level[IQ3_S_GRID[index[v]][i]]
/// ```
///
/// Source: `block_iq3_s` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockIq3S {
    /// Scale of the scales.
    pub d: f16,
    /// Low eight bits of the indices.
    pub indices: [u8; 64],
    /// Ninth bits of the indices.
    pub ninth_bits: [u8; 8],
    /// Signs, eight per byte.
    pub signs: [u8; 32],
    /// Codes of the scales, two per byte.
    pub scales: [u8; 4],
}

const _: () = assert!(size_of::<BlockIq3S>() == 110);

impl BlockIq3S {
    fn sub_scales(&self) -> [f32; 8] {
        packing::nibbles(&self.scales).map(|code| self.d.to_f32() * f32::from(2 * code + 1))
    }
}

impl Block for BlockIq3S {
    const DTYPE: DType = DType::IQ3_S;
    const LEN: usize = 256;
    /// Measured: 0.11 at most on hostile blocks (a few magnitudes far apart, spikes, offsets), of which a codebook has no
    /// pattern; and some room.
    const ERROR: f32 = 0.16;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut block: Self = bytemuck::Zeroable::zeroed();
        let limit = 31.0 * 15.0 * f16::MAX.to_f32_const();
        let Some((x, w)) = weights::prepare::<256>(values, importance, limit) else {
            return block;
        };
        let vectors = Signed(&*CODEBOOK);
        let fit = search_odd::<Signed<1, false, 2, 8>, 8, 32>(vectors, 1.0, &bytemuck::cast(x), &bytemuck::cast(w));
        block.d = fit.d;
        block.scales = packing::pack_nibbles(&fit.codes);
        block.with_codes(&nearest(&block.grid(), &x, &w))
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scales = self.sub_scales();
        for (v, out) in out.chunks_exact_mut(4).enumerate() {
            let ninth = u16::from(self.ninth_bits[v / 8] >> (v % 8) & 1);
            let index = u16::from(self.indices[v]) | ninth << 8;
            for (out, magnitude) in out.iter_mut().zip(CODEBOOK.magnitudes(index)) {
                *out = scales[v / 8] * magnitude;
            }
            apply_signs(u16::from(self.signs[v / 2] >> (4 * (v % 2))), out);
        }
    }
}

impl Coded for BlockIq3S {
    type Grid = ScaledVectors<Signed<1, false, 2, 8>, 8, 32>;

    fn grid(&self) -> Self::Grid {
        ScaledVectors::new(Signed(&CODEBOOK), self.sub_scales())
    }

    fn with_codes(mut self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        (self.ninth_bits, self.signs) = ([0; 8], [0; 32]);
        for (v, codes) in codes.chunks_exact(4).enumerate() {
            self.indices[v] = codes[0] as u8;
            self.ninth_bits[v / 8] |= ((codes[0] >> 8 & 1) as u8) << (v % 8);
            self.signs[v / 2] |= (codes[1] as u8 & 15) << (4 * (v % 2));
        }
        self
    }
}
