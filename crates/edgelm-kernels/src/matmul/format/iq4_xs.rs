//! IQ4_XS: a word of f16 d and high scale bits, a word of low scale nibbles, 32 words of nibbles that index a table of
//! 16 values. value = d · (scale − 32) · table[nibble], one scale per 32 values.

use super::*;
use edgelm_tensor::block::IQ4_VALUES;

pub(in crate::matmul) struct Iq4Xs;

impl Format for Iq4Xs {
    type Rule = Signed;
    type Words = [Line; 34];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        Units::stored(l, l.f16_low(l.load(&words[0][0])))
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        table_quants(l, &words[2 + 4 * sub..], &IQ4_VALUES)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        let low = l.and(l.shr(l.load(&words[1]), 4 * sub as u32), l.splat(0x0f));
        let high = l.and(l.shr(l.load(&words[0]), 16 + 2 * sub as u32), l.splat(0x03));
        Scales::one(l.sub(l.or(low, l.shl(high, 4)), l.splat(32)))
    }
}
