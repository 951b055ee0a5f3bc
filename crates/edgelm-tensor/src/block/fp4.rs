//! FP4: a sign, two bits of exponent and one of mantissa, divided by 12, and one scale.

use super::lookup::{LookupGrid, LookupTable, decode, encode};
use super::{Block, Coded, packing};
use crate::DType;
use half::f16;

/// By code; bit 3 is the sign. 0.0625 / 12 stands in the place of the subnormal.
/// Source: `FP4` of the bitsandbytes library.
pub static FP4: LookupTable = LookupTable::new(
    [
        0.0,
        0.062_5 / 12.0,
        8.0 / 12.0,
        1.0,
        4.0 / 12.0,
        0.5,
        2.0 / 12.0,
        0.25,
        0.0,
        -0.062_5 / 12.0,
        -8.0 / 12.0,
        -1.0,
        -4.0 / 12.0,
        -0.5,
        -2.0 / 12.0,
        -0.25,
    ],
    [11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3],
);

/// 32 weights in 18 bytes.
///
/// ```text
/// byte 0..2   scale, f16
///      2..18  q − byte i: value i in the low half, value i + 16 in the high half
/// value[i] = scale · FP4.values[q[i]]
/// ```
///
/// In files (bitsandbytes) a scale, in f32, belongs to 64 values or more: neighbouring blocks have the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockFp4 {
    /// Value of 1.
    pub scale: f16,
    /// Codes, two per byte.
    pub nibbles: [u8; 16],
}

const _: () = assert!(size_of::<BlockFp4>() == 18);

impl Block for BlockFp4 {
    const DTYPE: DType = DType::FP4;
    const LEN: usize = 32;
    /// Half of the widest gap, a third, and what rounding the largest magnitude to f16 adds.
    const ERROR: f32 = 0.1672;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, nibbles) = encode(&FP4, values, importance);
        Self { scale, nibbles }
    }

    fn decode(&self, out: &mut [f32]) {
        decode(&FP4, self.scale, &self.nibbles, out);
    }
}

impl Coded for BlockFp4 {
    type Grid = LookupGrid;

    fn grid(&self) -> LookupGrid {
        LookupGrid::new(&FP4, self.scale)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        Self { nibbles: packing::pack(&packing::small(codes)), ..self }
    }
}
