//! Q5_0: f16 scale, a word of fifth bits, 4 words of nibbles. value = scale · (quant − 16).

use super::*;

pub(in crate::matmul) struct Q5_0;

impl Rule for Q5_0 {
    const KIND: Kind = Kind::Unsigned(31);
    const OFFSET: i32 = 16;
}

impl Format for Q5_0 {
    type Rule = Self;
    type Words = [Line; 5];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        arrange_fifth_bits(&mut words[0]);
    }
    #[inline(always)]
    fn header<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS]) -> [L::F; 2] {
        half_header(l, half)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        join(l, split_nibbles(l, &words[1..]), fifth_bits(l, &words[0]), 0)
    }
    #[inline(always)]
    fn scales<L: Lanes>(_: L, _: &Self::Words, header: [L::F; 2], _: usize) -> Scales<L::F> {
        Scales::one(header[0])
    }
}
