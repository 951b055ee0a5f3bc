//! TQ2_0: 16 words of bit pairs, f16 scale. value = scale · (pair − 1). TQ1_0 is rewritten as this ([`from_tq1_0`]).
//!
//! Each half of 128 values has 8 words; pair t of every byte is its sub-block t.

use super::*;
use edgelm_tensor::block::BlockTq1_0;

pub(in crate::matmul) struct Tq2_0;

impl Format for Tq2_0 {
    type Rule = Unsigned<3, 1>;
    type Words = [Line; 16];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;
    const HALF_AT: Option<usize> = Some(64);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_stored(l, halves)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[sub / 4 * 8..], sub % 4 * 2, 0x03)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, _: &[u16; ROWS], _: &Units<L>, _: usize) -> Scales<L::U> {
        Scales::one(l.splat(1))
    }
}

/// Blocks of TQ1_0 with two bits for each value.
pub(in crate::matmul) fn from_tq1_0(bytes: &[u8], out: &mut Vec<u8>) {
    for block in bytes.chunks_exact(size_of::<BlockTq1_0>()) {
        let block: BlockTq1_0 = bytemuck::pod_read_unaligned(block);
        out.extend_from_slice(bytemuck::bytes_of(&block.to_tq2_0()));
    }
}
