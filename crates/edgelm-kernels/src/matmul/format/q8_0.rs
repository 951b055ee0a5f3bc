//! Q8_0: f16 scale, 8 words of signed bytes. value = scale · byte.

use super::*;

pub(in crate::matmul) struct Q8_0;

impl Format for Q8_0 {
    type Rule = Signed;
    type Words = [Line; 8];
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
        let mut q = [l.splat(0); 8];
        for j in 0..8 {
            q[j] = l.signed(l.load(&words[j]));
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
