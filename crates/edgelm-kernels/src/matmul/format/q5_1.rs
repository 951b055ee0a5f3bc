//! Q5_1: a word of f16 scale and f16 offset, a word of fifth bits, 4 words of nibbles. value = scale · quant + offset.

use super::*;

pub(in crate::matmul) struct Q5_1;

impl Rule for Q5_1 {
    const KIND: Kind = Kind::Unsigned(31);
    const MINS: bool = true;
}

impl Format for Q5_1 {
    type Rule = Self;
    type Words = [Line; 6];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 0;

    /// The offset is added where mins are subtracted: its sign flips.
    fn arrange(words: &mut [Line]) {
        negate_high_half(&mut words[0]);
        arrange_fifth_bits(&mut words[1]);
    }
    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L::F> {
        // 1024 · 31 is below 2^15.
        word_units(l, words, 512.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        join(l, split_nibbles(l, &words[2..]), fifth_bits(l, &words[1]), 0)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L::F>, _: usize) -> Scales<L::U> {
        word_scale(l, &words[0], units)
    }
}
