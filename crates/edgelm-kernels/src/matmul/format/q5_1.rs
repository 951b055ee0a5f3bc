//! Q5_1: a word of f16 scale and f16 offset, a word of fifth bits, 4 words of nibbles. value = scale · quant + offset.

use super::*;

pub(in crate::matmul) struct Q5_1;

impl Format for Q5_1 {
    type Rule = WithMins<31>;
    type Words = [Line; 6];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 0;

    fn arrange(words: &mut [Line]) {
        arrange_bits(&mut words[1]);
    }
    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        word_units(l, words, 31.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        join(l, split_nibbles(l, &words[2..]), fifth_bits(l, &words[1]), 0)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        word_scale(l, &words[0], units)
    }
}
