//! IQ3_S: f16 d, 16 words of low index bytes, 2 words of ninth index bits, 8 words of signs, a word of 4-bit scales.
//! value = d · (2 · scale + 1) · ± magnitude, one index per 4 values and one scale per 32.
//!
//! Sub-block s has the index bytes of words 2s and 2s + 1, the ninth bits of byte s, and signs arranged by
//! [`arrange_bits`]. Scales are at most 31 and magnitudes 15.

use super::*;
use edgelm_tensor::block::{IQ3_S_GRID, IQ3_S_LEVELS};

static TABLE: [u32; 512] = table_of_bytes(&IQ3_S_GRID, IQ3_S_LEVELS);

pub(in crate::matmul) struct Iq3S;

impl Format for Iq3S {
    type Rule = Signed;
    type Words = [Line; 27];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        words[18..26].iter_mut().for_each(arrange_bits);
    }

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_stored(l, halves)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let (ninth, signs) = (l.load(&words[16 + sub / 4]), l.load(&words[18 + sub]));
        let mut q = [l.splat(0); 8];
        for j in 0..8 {
            let low = byte(l, l.load(&words[2 * sub + j / 4]), j % 4);
            let index = l.or(low, moved(l, ninth, 8 * (sub % 4) + j, 8, 0x100));
            q[j] = with_signs(l, l.gather(&TABLE, index), signs, j);
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        Scales::one(odd_scale(l, l.load(&words[26]), sub))
    }
}
