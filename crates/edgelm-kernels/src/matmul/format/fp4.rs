//! FP4: f16 scale, 4 words of nibbles that index a table of 16 values. value = scale · table[nibble].

use super::*;
use edgelm_tensor::block::FP4;

/// What stands for 1 in the table of bytes: with 120 all values are whole but the smallest, which counts as 1 / 120 in place of
/// 1 / 192.
const ONE: f32 = 120.0;

const TABLE: [i8; 16] = table_of_values(&FP4.values, ONE);

pub(in crate::matmul) struct Fp4;

impl Format for Fp4 {
    type Rule = Signed;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // As in Q8_0: scales of signed bytes are below 256.
        half_units_of_one(l, halves, 127.75, ONE)
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
