//! Q5_0: f16 scale, a word of fifth bits, 4 words of nibbles. value = scale · (quant − 16).

use super::*;

pub(in crate::matmul) struct Q5_0;

impl Format for Q5_0 {
    type Rule = Unsigned<31, 16>;
    type Words = [Line; 5];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        arrange_bits(&mut words[0]);
    }
    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // 2047 · 16 is below 2^15.
        half_units(l, halves, 1024.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        join(l, split_nibbles(l, &words[1..]), fifth_bits(l, &words[0]), 0)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
