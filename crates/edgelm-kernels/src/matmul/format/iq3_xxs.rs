//! IQ3_XXS: f16 d, 16 words of index bytes, 8 words of signs and scale.
//! value = d / 4 · (2 · scale + 1) · ± magnitude, one index per 4 values and one scale per 32.
//!
//! Sub-block s has the index bytes of words 2s and 2s + 1. Its signs are arranged by [`arrange_even_signs`], with the bits of the
//! scale in the free places. Scales are at most 31 and magnitudes 62.

use super::*;
use edgelm_tensor::block::{IQ3_XXS_GRID, IQ3_XXS_LEVELS};

static TABLE: [u32; 256] = table_of_bytes(&IQ3_XXS_GRID, IQ3_XXS_LEVELS);

pub(in crate::matmul) struct Iq3Xxs;

impl Format for Iq3Xxs {
    type Rule = Signed;
    type Words = [Line; 24];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        for line in &mut words[16..24] {
            line.0 = line.0.map(arrange_signs_and_scale);
        }
    }

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_part(l, halves, 1.0 / 4.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let signs = even_signs(l, l.load(&words[16 + sub]));
        let mut q = [l.splat(0); 8];
        for j in 0..8 {
            let index = byte(l, l.load(&words[2 * sub + j / 4]), j % 4);
            q[j] = with_signs(l, l.gather(&TABLE, index), signs, j);
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        Scales::one(odd_scale_of_spare(l, l.load(&words[16 + sub])))
    }
}
