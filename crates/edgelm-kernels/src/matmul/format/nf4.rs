//! NF4: f16 scale, 4 words of nibbles that index a table of 16 values. value = scale · table[nibble].

use super::*;
use edgelm_tensor::block::NF4;

/// What stands for 1 in the table of bytes: with 112.03, rounding changes values by 0.0017 (root mean square, of 1) and by 0.0038
/// at most; with 127 by 0.0022 and 0.0037. Next to the distance of the values, 0.13 on average, both are little.
const ONE: f32 = 112.03;

/// The largest byte is 112.
const TABLE: [i8; 16] = table_of_values(&NF4.values, ONE);

pub(in crate::matmul) struct Nf4;

impl Format for Nf4 {
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
