//! Q2_K: 4 words of scale and min nibbles, 16 words of bit pairs, a word of f16 d and f16 dmin.
//! value = d · scale · pair − dmin · min, one scale and min per 16 values.
//!
//! Each half of 128 values has 8 words; pair t of every byte is its sub-block t.

use super::*;

pub(in crate::matmul) struct Q2K;

impl Format for Q2K {
    type Rule = Per16WithMins<3>;
    type Words = [Line; 21];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L::F> {
        mins_units(l, &words[0][20], 15.0 * 3.0, 15.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 4 * 8..], sub % 4 * 2, 0x03)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L::F>, sub: usize) -> Scales<L::U> {
        let (first, second) = (byte(l, &words[..4], 2 * sub), byte(l, &words[..4], 2 * sub + 1));
        let nibble = l.splat(0x0f);
        let scale =
            [in_units(l, l.and(first, nibble), units.per_scale), in_units(l, l.and(second, nibble), units.per_scale)];
        let mins = [in_units(l, l.shr(first, 4), units.per_min), in_units(l, l.shr(second, 4), units.per_min)];
        Scales { scale, mins: l.pair(mins[0], mins[1]) }
    }
}
