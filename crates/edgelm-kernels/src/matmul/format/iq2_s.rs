//! IQ2_S: f16 d, 8 words of low index bytes, 8 words of signs, 2 words of upper index bits, 2 words of 4-bit scales.
//! value = d / 8 · (2 · scale + 1) · ± magnitude, one index per 8 values and one scale per 16.
//!
//! Sub-block s has the index bytes of word s, the upper bits of byte s, and signs arranged by [`arrange_bits`]. Scales are at
//! most 31 and magnitudes 43.

use super::*;
use edgelm_tensor::block::IQ2_S_GRID;

static TABLE: [u32; 1024] = table_of_nibbles(&IQ2_S_GRID);

pub(in crate::matmul) struct Iq2S;

impl Format for Iq2S {
    type Rule = SignedPer16;
    type Words = [Line; 20];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        words[8..16].iter_mut().for_each(arrange_bits);
    }

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_part(l, halves, 1.0 / 8.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let (low, upper, signs) = (l.load(&words[sub]), l.load(&words[16 + sub / 4]), l.load(&words[8 + sub]));
        let mut entries = [low; 4];
        for k in 0..4 {
            let index = l.or(byte(l, low, k), moved(l, upper, 8 * (sub % 4) + 2 * k, 8, 0x300));
            entries[k] = l.gather(&TABLE, index);
        }
        iq2_quants(l, entries, signs)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        let word = l.load(&words[18 + sub / 4]);
        Scales::two([odd_scale(l, word, 2 * (sub % 4)), odd_scale(l, word, 2 * (sub % 4) + 1)])
    }
}
