//! MXFP4: a sign, two bits of exponent and one of mantissa, and one scale, a power of two.

use super::grid::nearest;
use super::lookup::{LookupGrid, LookupTable};
use super::{Block, Coded, Grid, packing, weights};
use crate::DType;

/// Twice the values of e2m1, by code; bit 3 is the sign.
/// Source: OCP Microscaling Formats (MX) 1.0.
pub static MXFP4: LookupTable = LookupTable::new(
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0],
    [15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7],
);

/// The largest value of the table.
const LARGEST: f32 = 12.0;

/// Exponents of blocks that are zero, and the largest whose values are all finite.
const SMALLEST: u8 = 100;
const FINITE: u8 = 252;

/// 32 weights in 17 bytes.
///
/// ```text
/// byte 0      e: the scale is 2^(e − 128)
///      1..17  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · MXFP4.values[q[i]]
/// ```
///
/// Source: `block_mxfp4` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockMxfp4 {
    /// 128 more than the exponent of the scale.
    pub exponent: u8,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockMxfp4>() == 17);

impl BlockMxfp4 {
    /// 2^(exponent − 128).
    pub fn scale(&self) -> f32 {
        match self.exponent {
            // Too small for the exponent of an f32.
            small @ 0..2 => f32::from_bits(0x0020_0000 << small),
            exponent => f32::from_bits(u32::from(exponent - 1) << 23),
        }
    }
}

impl Block for BlockMxfp4 {
    const DTYPE: DType = DType::MXFP4;
    const LEN: usize = 32;
    /// Half of the widest gap, that between 8 and 12, of a block whose largest value is 10.
    const ERROR: f32 = 0.2;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let zero = Self { exponent: SMALLEST, nibbles: [0; 16] };
        let Some((x, w)) = weights::prepare::<32>(values, importance, f32::MAX) else { return zero };
        let peak = x.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
        // The smallest scale that clips nothing, and the next smaller one.
        let exponents = SMALLEST..=FINITE;
        let fits = |exponent: &u8| LARGEST * Self { exponent: *exponent, ..zero }.scale() >= peak;
        let first = exponents.clone().find(fits).unwrap_or(*exponents.end());
        let mut best = (f32::INFINITY, zero);
        for exponent in [first, first.saturating_sub(1).max(SMALLEST)] {
            let block = Self { exponent, ..zero };
            let grid = block.grid();
            let block = block.with_codes(&nearest(&grid, &x, &w));
            let mut error = 0.0;
            for (i, (x, w)) in x.iter().zip(&w).enumerate() {
                let mut decoded = [0.0];
                grid.choose(i, &[*x], &[1.0], &mut [0], &mut decoded);
                // Counted in peaks, so that squares of huge values are finite.
                let rest = (x - decoded[0]) / peak;
                error += w * rest * rest;
            }
            if error < best.0 {
                best = (error, block);
            }
        }
        best.1
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale();
        for (out, code) in out.iter_mut().zip(packing::unpack(&self.nibbles)) {
            *out = scale * MXFP4.values[usize::from(code)];
        }
    }
}

impl Coded for BlockMxfp4 {
    type Grid = LookupGrid;

    fn grid(&self) -> LookupGrid {
        LookupGrid::scaled(&MXFP4, self.scale())
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
