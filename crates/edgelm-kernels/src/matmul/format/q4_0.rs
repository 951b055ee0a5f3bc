//! Q4_0: f16 scale, 4 words of nibbles. value = scale · (nibble − 8).

use super::*;

pub(in crate::matmul) struct Q4_0;

impl Rule for Q4_0 {
    const KIND: Kind = Kind::Unsigned(15);
    const OFFSET: i32 = 8;
}

impl Format for Q4_0 {
    type Rule = Self;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn header<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS]) -> [L::F; 2] {
        half_header(l, half)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        split_nibbles(l, words)
    }
    #[inline(always)]
    fn scales<L: Lanes>(_: L, _: &Self::Words, header: [L::F; 2], _: usize) -> Scales<L::F> {
        Scales::one(header[0])
    }
}
