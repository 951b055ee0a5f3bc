//! Q4_24: f16 scale, 2 words of nibbles, the two of every four values that are kept, and a word of masks, four bits for every
//! four values. value = scale · (nibble − 8).

use super::*;

/// What nibbles mean: values that are not kept must be zeros of the same kind.
const TABLE: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

pub(in crate::matmul) struct Q4Sparse;

impl Format for Q4Sparse {
    type Rule = Signed;
    type Words = [Line; 3];
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
        let mut kept = [l.splat(0); 4];
        for w in 0..2 {
            let word = l.load(&words[w]);
            kept[w] = l.lookup(&TABLE, l.byte_bits(word, 0, 0x0f));
            kept[w + 2] = l.lookup(&TABLE, l.byte_bits(word, 4, 0x0f));
        }
        spread_quants(l, kept, l.load(&words[2]))
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
