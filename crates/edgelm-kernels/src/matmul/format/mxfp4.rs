//! MXFP4, rewritten with its scale, a power of two, as f16 ([`with_half`]): 4 words of nibbles that index a table of 16 values.
//! value = scale · table[nibble].
//!
//! Scales below 2^-24 become zero, and those above 2^15, which would make weights of a hundred thousand, show in results as not a
//! number. Scales of a group that differ by no more than a factor of 128 are exact.

use super::*;
use edgelm_tensor::block::{BlockMxfp4, MXFP4};

/// All of its values are whole numbers.
const TABLE: [i8; 16] = table_of_values(&MXFP4.values, 1.0);

pub(in crate::matmul) struct Mxfp4;

impl Format for Mxfp4 {
    type Rule = Signed;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // The largest scale is a power of two: 128.
        half_units(l, halves, 128.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        table_quants(l, words, &TABLE)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}

/// Blocks as they stand in files, with an f16 in the place of the exponent.
pub(in crate::matmul) fn with_half(bytes: &[u8], out: &mut Vec<u8>) {
    for block in bytes.chunks_exact(size_of::<BlockMxfp4>()) {
        let block: BlockMxfp4 = bytemuck::pod_read_unaligned(block);
        out.extend_from_slice(&half::f16::from_f32(block.scale()).to_le_bytes());
        out.extend_from_slice(&block.nibbles);
    }
}
