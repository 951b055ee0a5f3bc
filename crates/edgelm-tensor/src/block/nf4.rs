//! NF4: 4 bits that index the quantiles of a normal distribution, and one scale.

use super::lookup::{LookupGrid, LookupTable, decode, encode};
use super::{Block, Coded, packing};
use crate::DType;
use half::f16;

/// Sixteen values from −1 to 1 that equally many of normally distributed numbers are nearest to, with 0 among them.
/// Source: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
pub static NF4: LookupTable = LookupTable::new(
    [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
);

/// 32 weights in 18 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..18  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · NF4.values[q[i]]
/// ```
///
/// In files (bitsandbytes) a scale, in f32, belongs to 64 values or more: neighbouring blocks have the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockNf4 {
    /// Value of 1.
    pub scale: f16,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockNf4>() == 18);

impl Block for BlockNf4 {
    const DTYPE: DType = DType::NF4;
    const LEN: usize = 32;
    /// Half of the widest gap, 0.304, and what rounding the largest magnitude to f16 adds.
    const ERROR: f32 = 0.1525;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, nibbles) = encode(&NF4, values, importance);
        Self { scale, nibbles }
    }

    fn decode(&self, out: &mut [f32]) {
        decode(&NF4, self.scale, &self.nibbles, out);
    }
}

impl Coded for BlockNf4 {
    type Grid = LookupGrid;

    fn grid(&self) -> LookupGrid {
        LookupGrid::new(&NF4, self.scale)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
