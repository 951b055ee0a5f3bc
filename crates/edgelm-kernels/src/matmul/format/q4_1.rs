//! Q4_1: a word of f16 scale and f16 offset, 4 words of nibbles. value = scale · nibble + offset.

use super::*;

pub(in crate::matmul) struct Q4_1;

impl Rule for Q4_1 {
    const KIND: Kind = Kind::Unsigned(15);
    const MINS: bool = true;
}

impl Format for Q4_1 {
    type Rule = Self;
    type Words = [Line; 5];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 0;

    /// The offset is added where mins are subtracted: its sign flips.
    fn arrange(words: &mut [Line]) {
        negate_high_half(&mut words[0]);
    }
    #[inline(always)]
    fn header<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS]) -> [L::F; 2] {
        word_header(l, &words[0])
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        split_nibbles(l, &words[1..])
    }
    #[inline(always)]
    fn scales<L: Lanes>(_: L, _: &Self::Words, header: [L::F; 2], _: usize) -> Scales<L::F> {
        Scales::with_min(header[0], header[1])
    }
}
