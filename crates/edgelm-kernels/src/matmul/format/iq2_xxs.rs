//! IQ2_XXS: f16 d, for each sub-block a word of index bytes and one of signs and scale.
//! value = d / 8 · (2 · scale + 1) · ± magnitude, one index per 8 values and one scale per 32.
//!
//! Signs are arranged by [`arrange_even_signs`], with the bits of the scale in the free places. Scales are at most 31 and
//! magnitudes 43.

use super::*;
use edgelm_tensor::block::IQ2_XXS_GRID;

static TABLE: [u32; 256] = table_of_nibbles(&IQ2_XXS_GRID);

pub(in crate::matmul) struct Iq2Xxs;

impl Format for Iq2Xxs {
    type Rule = Signed;
    type Words = [Line; 16];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        for [_, line] in words.as_chunks_mut().0 {
            line.0 = line.0.map(arrange_signs_and_scale);
        }
    }

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_part(l, halves, 1.0 / 8.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let indices = l.load(&words[2 * sub]);
        let mut entries = [indices; 4];
        for k in 0..4 {
            entries[k] = l.gather(&TABLE, byte(l, indices, k));
        }
        iq2_quants(l, entries, even_signs(l, l.load(&words[2 * sub + 1])))
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        Scales::one(odd_scale_of_spare(l, l.load(&words[2 * sub + 1])))
    }
}
