//! IQ4_NL: f16 scale, 4 words of nibbles that index a table of 16 values. value = scale · table[nibble].

use super::*;
use edgelm_tensor::block::IQ4_VALUES;

pub(in crate::matmul) struct Iq4Nl;

impl Format for Iq4Nl {
    type Rule = Signed;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // The largest scale, just below 2 · 127.75, is rounded to 255 at most: 255 · 128 is below 2^15.
        half_units(l, halves, 127.75)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        table_quants(l, words, &IQ4_VALUES)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
