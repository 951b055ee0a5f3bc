//! IQ2_XS: f16 d, 16 words of two 9-bit indices with 7 signs each, 2 words of 4-bit scales.
//! value = d / 8 · (2 · scale + 1) · ± magnitude, one index per 8 values and one scale per 16.
//!
//! Here the first word of a sub-block has the low bytes of its four indices and the second the signs, arranged by
//! [`arrange_even_signs`], with the ninth bits in the free places. Scales are at most 31 and magnitudes 43.

use super::*;
use edgelm_tensor::block::IQ2_XS_GRID;

static TABLE: [u32; 512] = table_of_nibbles(&IQ2_XS_GRID);

pub(in crate::matmul) struct Iq2Xs;

impl Format for Iq2Xs {
    type Rule = SignedPer16;
    type Words = [Line; 18];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    fn arrange(words: &mut [Line]) {
        for [first, second] in words[..16].as_chunks_mut().0 {
            for lane in 0..ROWS {
                let vectors = [first.0[lane], first.0[lane] >> 16, second.0[lane], second.0[lane] >> 16];
                let (mut low, mut ninth) = (0, 0);
                for (k, vector) in vectors.iter().enumerate() {
                    low |= (vector & 0xff) << (8 * k);
                    ninth |= (vector >> 8 & 1) << k;
                }
                first.0[lane] = low;
                second.0[lane] = arrange_even_signs(vectors.map(|vector| vector >> 9 & 127), ninth);
            }
        }
    }

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_part(l, halves, 1.0 / 8.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let (low, signs) = (l.load(&words[2 * sub]), l.load(&words[2 * sub + 1]));
        let mut entries = [low; 4];
        for k in 0..4 {
            let index = l.or(byte(l, low, k), moved(l, signs, SPARE_AT + 2 * k, 8, 0x100));
            entries[k] = l.gather(&TABLE, index);
        }
        iq2_quants(l, entries, even_signs(l, signs))
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        let word = l.load(&words[16 + sub / 4]);
        Scales::two([odd_scale(l, word, 2 * (sub % 4)), odd_scale(l, word, 2 * (sub % 4) + 1)])
    }
}
