//! TQ1_0: ternary weights, five to a byte, and one scale.

use super::tq2_0::{TernaryGrid, encode_ternary, ternary_grid};
use super::{Block, BlockTq2_0, Coded};
use crate::DType;
use half::f16;

/// Digits of a byte, the first one the highest.
const DIGITS: usize = 5;

/// 256 weights in 54 bytes.
///
/// ```text
/// byte  0..32  digit n of byte i: value 32n + i, n below 5
///      32..48  digit n of byte 32 + i: value 160 + 16n + i, n below 5
///      48..52  digit n of byte 48 + i: value 240 + 4n + i, n below 4
///      52..54  scale, f16
/// digit n of a byte = ⌊3 · (byte · 3ⁿ mod 256) / 256⌋
/// value[i] = scale · (digit − 1)
/// ```
///
/// Source: `block_tq1_0` of ggml.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct BlockTq1_0 {
    /// Five digits of base 3 each; of the last four bytes four.
    pub digits: [[u8; 4]; 13],
    /// Value of 1; either sign.
    pub scale: f16,
}

const _: () = assert!(size_of::<BlockTq1_0>() == 54);

/// The byte and digit of a value.
const fn place(index: usize) -> (usize, u32) {
    match index {
        0..160 => (index % 32, (index / 32) as u32),
        160..240 => (32 + (index - 160) % 16, ((index - 160) / 16) as u32),
        _ => (48 + (index - 240) % 4, ((index - 240) / 4) as u32),
    }
}

impl BlockTq1_0 {
    /// Codes from 0 to 2, which stand for −1 to 1.
    fn codes(&self) -> [u16; 256] {
        std::array::from_fn(|index| {
            let (byte, digit) = place(index);
            let rest = self.digits[byte / 4][byte % 4].wrapping_mul(3u8.pow(digit));
            (u16::from(rest) * 3) >> 8
        })
    }

    /// The same values with two bits each.
    pub fn to_tq2_0(&self) -> BlockTq2_0 {
        BlockTq2_0 { crumbs: super::packing::pack_crumbs(&self.codes()), scale: self.scale }
    }
}

impl Block for BlockTq1_0 {
    const DTYPE: DType = DType::TQ1_0;
    const LEN: usize = 256;
    /// Half of the largest magnitude, and what rounding the scale to f16 adds.
    const ERROR: f32 = 0.501;

    fn encode(values: &[f32], importance: Option<&[f32]>) -> Self {
        let (scale, codes) = encode_ternary(values, importance);
        Self { digits: [[0; 4]; 13], scale }.with_codes(&codes)
    }

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), Self::LEN);
        let scale = self.scale.to_f32();
        out.iter_mut().zip(self.codes()).for_each(|(out, code)| *out = scale * (f32::from(code) - 1.0));
    }
}

impl Coded for BlockTq1_0 {
    type Grid = TernaryGrid;

    fn grid(&self) -> TernaryGrid {
        ternary_grid(self.scale)
    }

    fn with_codes(self, codes: &[u16]) -> Self {
        assert_eq!(codes.len(), Self::LEN);
        let mut numbers = [0u16; 52];
        for (index, code) in codes.iter().enumerate() {
            let (byte, digit) = place(index);
            numbers[byte] += code * 3u16.pow(DIGITS as u32 - 1 - digit);
        }
        // Of 243 parts of a whole, as parts of 256, rounded up: multiplying by 3 then pushes the digits out.
        let bytes = numbers.map(|number| (u32::from(number) * 256).div_ceil(243) as u8);
        Self { digits: std::array::from_fn(|i| std::array::from_fn(|j| bytes[4 * i + j])), ..self }
    }
}
