//! Q4_0: f16 scale, 4 words of nibbles. value = scale · (nibble − 8).

use super::*;

pub(in crate::matmul) struct Q4_0;

impl Format for Q4_0 {
    type Rule = Unsigned<15, 8>;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // 4095 · 8 is below 2^15.
        half_units(l, halves, 2048.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        split_nibbles(l, words)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
