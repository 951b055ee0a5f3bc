//! Q5_K: a word of f16 d and f16 dmin, 3 words of 6-bit scales and mins, 8 words of fifth bits, 32 words of nibbles.
//! value = d · scale · quant − dmin · min, one scale and min per 32 values.
//!
//! Nibbles are as in Q4_K; bit s of fifth-bit byte i belongs to value i of sub-block s.

use super::*;

pub(in crate::matmul) struct Q5K;

impl Format for Q5K {
    type Rule = WithMins<31>;
    type Words = [Line; 44];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    fn arrange(words: &mut [Line]) {
        arrange_scales(&mut words[1..4]);
    }
    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        mins_units::<L, 6>(l, &words[0][0], 31.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let low = bits(l, &words[12 + sub / 2 * 8..], sub % 2 * 4, 0x0f);
        join(l, low, bits(l, &words[4..12], sub, 0x01), 4)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L>, sub: usize) -> Scales<L::U> {
        scale_and_min(l, &words[1..4], sub, units)
    }
}
