//! Q4_1: a word of f16 scale and f16 offset, 4 words of nibbles. value = scale · nibble + offset.

use super::*;

pub(in crate::matmul) struct Q4_1;

impl Format for Q4_1 {
    type Rule = WithMins<15>;
    type Words = [Line; 5];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        word_units(l, words, 15.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        split_nibbles(l, &words[1..])
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        word_scale(l, &words[0], units)
    }
}
