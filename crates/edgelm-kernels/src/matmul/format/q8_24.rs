//! Q8_24: f16 scale, 4 words of signed bytes, the two of every four values that are kept, and a word of masks, four bits for
//! every four values. value = scale · byte.

use super::*;

pub(in crate::matmul) struct Q8Sparse;

impl Format for Q8Sparse {
    type Rule = Signed;
    type Words = [Line; 5];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        // As in Q8_0.
        half_units(l, halves, 127.75)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        let mut kept = [l.splat(0); 4];
        for w in 0..4 {
            kept[w] = l.load(&words[w]);
        }
        let mut q = spread_quants(l, kept, l.load(&words[4]));
        for vector in &mut q {
            *vector = l.signed(*vector);
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
