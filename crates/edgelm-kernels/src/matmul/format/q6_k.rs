//! Q6_K: 32 words of low nibbles, 16 words of high bit pairs, 4 words of signed 8-bit scales, f16 d.
//! value = d · scale · (quant − 32), one scale per 16 values.
//!
//! Each half of 128 values has 16 words of nibbles and 8 of pairs. Its sub-blocks 0 and 1 are the low nibbles of the
//! first and last 8 words, 2 and 3 the high ones; sub-block t has pair t of every byte.

use super::*;

pub(in crate::matmul) struct Q6K;

impl Format for Q6K {
    type Rule = Per16<63, 32>;
    type Words = [Line; 52];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;
    const HALF_AT: Option<usize> = Some(208);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_stored(l, halves)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let (half, part) = (sub / 4, sub % 4);
        let low = bits(l, &words[half * 16 + part % 2 * 8..], part / 2 * 4, 0x0f);
        join(l, low, bits(l, &words[32 + half * 8..], part * 2, 0x03), 4)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        let word = l.load(&words[48 + sub / 2]);
        let at = 16 * (sub % 2) as u32;
        Scales::two([l.sar(l.shl(word, 24 - at), 24), l.sar(l.shl(word, 16 - at), 24)])
    }
}
