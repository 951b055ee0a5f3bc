//! Q4_K: a word of f16 d and f16 dmin, 3 words of 6-bit scales and mins, 32 words of nibbles.
//! value = d · scale · nibble − dmin · min, one scale and min per 32 values.
//!
//! Eight words hold two sub-blocks: the even one in the low nibbles, the odd one in the high nibbles.

use super::*;

pub(in crate::matmul) struct Q4K;

impl Format for Q4K {
    type Rule = WithMins<15>;
    type Words = [Line; 36];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    fn arrange(words: &mut [Line]) {
        arrange_scales(&mut words[1..4]);
    }
    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        mins_units::<L, 6>(l, &words[0][0], 15.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 2 * 8..], sub % 2 * 4, 0x0f)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L>, sub: usize) -> Scales<L::U> {
        scale_and_min(l, &words[1..4], sub, units)
    }
}
