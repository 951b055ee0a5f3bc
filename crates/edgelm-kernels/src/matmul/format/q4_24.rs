//! Q4_24: f16 scale, 2 words of nibbles, the two of every four values that are kept, and a word of masks, four bits for every
//! four values. value = scale · (nibble − 8).

use super::*;

pub(in crate::matmul) struct Q4Sparse;

impl Format for Q4Sparse {
    type Rule = Unsigned<15, 8>;
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
        // Values that are not kept come out as 0 and must count as 8, so these two change places before and after.
        let zero = l.splat(0x0808_0808);
        let mut kept = [l.splat(0); 4];
        for w in 0..2 {
            let word = l.load(&words[w]);
            kept[w] = l.xor(l.byte_bits(word, 0, 0x0f), zero);
            kept[w + 2] = l.xor(l.byte_bits(word, 4, 0x0f), zero);
        }
        let mut q = spread_quants(l, kept, l.load(&words[2]));
        for vector in &mut q {
            *vector = l.xor(*vector, zero);
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS], units: &Units<L>, _: usize) -> Scales<L::U> {
        half_scale(l, half, units)
    }
}
