//! Q2_K: 4 words of scale and min nibbles, 16 words of bit pairs, a word of f16 d and f16 dmin.
//! value = d · scale · pair − dmin · min, one scale and min per 16 values.
//!
//! Each half of 128 values has 8 words; pair t of every byte is its sub-block t.

use super::*;

pub(in crate::matmul) struct Q2K;

impl Rule for Q2K {
    const KIND: Kind = Kind::Unsigned(3);
    const PER_16: bool = true;
    const MINS: bool = true;
}

impl Format for Q2K {
    type Rule = Self;
    type Words = [Line; 21];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L::F> {
        word_units_stored(l, &words[0][20])
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 4 * 8..], sub % 4 * 2, 0x03)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L::F>, sub: usize) -> Scales<L::U> {
        let (first, second) = (byte(l, &words[..4], 2 * sub), byte(l, &words[..4], 2 * sub + 1));
        let nibble = l.splat(0x0f);
        Scales { scale: [l.and(first, nibble), l.and(second, nibble)], mins: l.pair(l.shr(first, 4), l.shr(second, 4)) }
    }
}
