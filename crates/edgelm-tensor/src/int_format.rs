//! Integers with one scale for a run of values of any length: what int8, int4, int3 and int2 mean outside of GGUF.
//!
//! Kernels know blocks of 32. Such integers are blocks whose neighbours have equal scales, so a matrix of them is run as one
//! of Q8_0, Q4_0 or Q4_1 (of Q8_24 or Q4_24 where two of every four are zero): [`IntFormat::block_dtype`] says which, `write_block` and `read_block` convert without loss.

use crate::{
    DType,
    block::{Block, BlockQ4_0, BlockQ4_1, BlockQ4Sparse, BlockQ5_0, BlockQ8_0, BlockQ8Sparse},
};
use half::f16;

/// Values of a block.
const LEN: usize = 32;

/// value = scale · (q − zero), with q and zero whole numbers of `bits` bits in two's complement; zero is 0 where symmetric.
///
/// Source: the `compressed-tensors` format, `QuantizationArgs` of type `int`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntFormat {
    bits: u32,
    symmetric: bool,
    dtype: DType,
}

/// The numbers of one block of 32 values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IntBlock {
    /// Value of one step.
    pub scale: f16,
    /// What stands for 0.
    pub zero: i8,
    /// Quants.
    pub codes: [i8; LEN],
}

impl IntFormat {
    /// 2 to 8 bits where symmetric, 2 to 4 where not; `None` for others, which no block format holds.
    pub fn new(bits: u32, symmetric: bool) -> Option<Self> {
        let dtype = match (bits, symmetric) {
            (2..=4, true) => DType::Q4_0,
            (5..=8, true) => DType::Q8_0,
            (2..=4, false) => DType::Q4_1,
            _ => return None,
        };
        Some(Self { bits, symmetric, dtype })
    }

    /// The same with two zeros, which are not stored, in every four; `None` where it is not symmetric.
    pub fn sparse(self) -> Option<Self> {
        let dtype = match self.dtype {
            DType::Q4_0 | DType::Q4_24 => DType::Q4_24,
            DType::Q8_0 | DType::Q8_24 => DType::Q8_24,
            _ => return None,
        };
        Some(Self { dtype, ..self })
    }

    /// True if of every four quants two are zero.
    pub fn is_sparse(self) -> bool {
        self.dtype.is_sparse()
    }

    /// Bits of a quant.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// True if zero is 0 for all values.
    pub fn is_symmetric(self) -> bool {
        self.symmetric
    }

    /// The block format in which it is run.
    pub fn block_dtype(self) -> DType {
        self.dtype
    }

    /// Smallest quant.
    pub fn low(self) -> i8 {
        (-(1i16 << (self.bits - 1))) as i8
    }

    /// Largest quant.
    pub fn high(self) -> i8 {
        ((1i16 << (self.bits - 1)) - 1) as i8
    }

    /// The minimum of a block with a zero, in the precision in which blocks hold it.
    fn min(self, scale: f16, zero: i8) -> f16 {
        f16::from_f32(-(f32::from(zero) - f32::from(self.low())) * scale.to_f32())
    }

    /// The values of the quants of a block, from the smallest quant on: (first, step).
    pub fn line(self, scale: f16, zero: i8) -> (f32, f32) {
        let step = scale.to_f32();
        match self.symmetric {
            true => (f32::from(self.low()) * step, step),
            false => (self.min(scale, zero).to_f32(), step),
        }
    }

    /// Appends a block. Quants and zero must be those of the format; of a sparse one two quants of every four are kept, those
    /// that are not zero first.
    pub fn write_block(self, block: &IntBlock, out: &mut Vec<u8>) {
        let IntBlock { scale, zero, codes } = *block;
        match self.dtype {
            DType::Q8_0 | DType::Q4_0 => write_ints(self.dtype, scale, &codes, out),
            DType::Q8_24 => out.extend_from_slice(bytemuck::bytes_of(&BlockQ8Sparse::from_quants(scale, &codes))),
            DType::Q4_24 => out.extend_from_slice(bytemuck::bytes_of(&BlockQ4Sparse::from_quants(scale, &codes))),
            _ => {
                let nibbles = nibbles(&codes, self.low());
                let block = BlockQ4_1 { scale, min: self.min(scale, zero), nibbles };
                out.extend_from_slice(bytemuck::bytes_of(&block));
            }
        }
    }

    /// What `write_block` wrote. Panics if `bytes` is not one block.
    pub fn read_block(self, bytes: &[u8]) -> IntBlock {
        let split = |nibbles: [u8; 16], from: i8| -> [i8; LEN] {
            std::array::from_fn(|i| (if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 }) as i8 + from)
        };
        match self.dtype {
            DType::Q8_0 => {
                let block: BlockQ8_0 = bytemuck::pod_read_unaligned(bytes);
                IntBlock { scale: block.scale, zero: 0, codes: block.codes }
            }
            DType::Q4_0 => {
                let block: BlockQ4_0 = bytemuck::pod_read_unaligned(bytes);
                IntBlock { scale: block.scale, zero: 0, codes: split(block.nibbles, -8) }
            }
            DType::Q8_24 => {
                let block: BlockQ8Sparse = bytemuck::pod_read_unaligned(bytes);
                IntBlock { scale: block.scale, zero: 0, codes: block.quants() }
            }
            DType::Q4_24 => {
                let block: BlockQ4Sparse = bytemuck::pod_read_unaligned(bytes);
                IntBlock { scale: block.scale, zero: 0, codes: block.quants() }
            }
            _ => {
                let block: BlockQ4_1 = bytemuck::pod_read_unaligned(bytes);
                let steps = if block.scale > f16::ZERO { -block.min.to_f32() / block.scale.to_f32() } else { 0.0 };
                let zero = f32::from(self.low()) + steps.round();
                IntBlock { scale: block.scale, zero: zero as i8, codes: split(block.nibbles, self.low()) }
            }
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.dtype.block_bytes()
    }
}

/// Low four bits of 32 codes less `from`, as blocks have them.
fn nibbles(codes: &[i8; LEN], from: i8) -> [u8; LEN / 2] {
    std::array::from_fn(|i| {
        let code = |i: usize| codes[i].wrapping_sub(from) as u8 & 15;
        code(i) | code(i + LEN / 2) << 4
    })
}

/// Appends a block whose values are scale · code, of Q4_0 (codes from −8 to 7), Q5_0 (−16 to 15) or Q8_0: exact. Panics for other
/// formats.
pub fn write_ints(dtype: DType, scale: f16, codes: &[i8; LEN], out: &mut Vec<u8>) {
    match dtype {
        DType::Q4_0 => out.extend_from_slice(bytemuck::bytes_of(&BlockQ4_0 { scale, nibbles: nibbles(codes, -8) })),
        DType::Q5_0 => {
            let fifth = |bits: u32, i: usize| bits | u32::from(codes[i].wrapping_add(16) as u8 >> 4 & 1) << i;
            let fifth_bits = (0..LEN).fold(0, fifth).to_le_bytes();
            out.extend_from_slice(bytemuck::bytes_of(&BlockQ5_0 { scale, fifth_bits, nibbles: nibbles(codes, -16) }));
        }
        DType::Q8_0 => out.extend_from_slice(bytemuck::bytes_of(&BlockQ8_0 { scale, codes: *codes })),
        other => panic!("{other} does not hold integers with one scale"),
    }
}

const _: () = assert!(BlockQ8_0::LEN == LEN && BlockQ4_0::LEN == LEN && BlockQ4_1::LEN == LEN);
const _: () = assert!(BlockQ8Sparse::LEN == LEN && BlockQ4Sparse::LEN == LEN);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::block::decode_row;

    fn all() -> impl Iterator<Item = IntFormat> {
        (0..10).flat_map(|bits| [true, false].map(|symmetric| IntFormat::new(bits, symmetric))).flatten()
    }

    fn all_and_sparse() -> impl Iterator<Item = IntFormat> {
        all().chain(all().filter_map(IntFormat::sparse))
    }

    #[test]
    fn integers_are_written_exactly() {
        for (dtype, low, high) in [(DType::Q4_0, -8, 7), (DType::Q5_0, -16, 15), (DType::Q8_0, -128, 127)] {
            let codes: [i8; LEN] = std::array::from_fn(|i| (low + (i as i32 * 37) % (high - low + 1)) as i8);
            let scale = f16::from_f32(-0.0371);
            let mut bytes = Vec::new();
            write_ints(dtype, scale, &codes, &mut bytes);
            let mut values = [0.0; LEN];
            decode_row(dtype, &bytes, &mut values).unwrap();
            assert_eq!(values, codes.map(|code| scale.to_f32() * f32::from(code)), "{dtype}");
        }
    }

    #[test]
    fn blocks_hold_every_quant_scale_and_zero() {
        assert_eq!(all().count(), 7 + 3);
        assert_eq!(all_and_sparse().count(), 7 + 3 + 7);
        for format in all_and_sparse() {
            let zeros = if format.is_symmetric() { 0..=0 } else { format.low()..=format.high() };
            for zero in zeros {
                for scale in [f16::from_bits(1), f16::from_f32(3e-4), f16::from_f32(0.0371), f16::from_f32(900.0)] {
                    let range = i32::from(format.high()) - i32::from(format.low()) + 1;
                    // Of every four two, other ones each time, and in one four only one.
                    let is_kept = |i: usize| !format.is_sparse() || ((i + i / 4) % 4 < 2 && i != 9);
                    let code = |i: usize| match is_kept(i) {
                        true => (i32::from(format.low()) + (i as i32 * 37) % range) as i8,
                        false => 0,
                    };
                    let block = IntBlock { scale, zero, codes: std::array::from_fn(code) };
                    let mut bytes = Vec::new();
                    format.write_block(&block, &mut bytes);
                    assert_eq!(bytes.len(), format.block_bytes());
                    assert_eq!(format.read_block(&bytes), block, "{format:?}");
                    let mut values = [0.0; LEN];
                    decode_row(format.block_dtype(), &bytes, &mut values).unwrap();
                    let (first, step) = format.line(scale, zero);
                    for (value, code) in values.iter().zip(block.codes) {
                        let exact = scale.to_f32() * (f32::from(code) - f32::from(zero));
                        assert!((value - exact).abs() <= 16.0 * scale.to_f32() / 2048.0, "{format:?} {value} {exact}");
                        let at = f32::from(code) - f32::from(format.low());
                        assert!((value - (first + at * step)).abs() <= 1e-6 * scale.to_f32() * 128.0);
                    }
                }
            }
        }
    }
}
