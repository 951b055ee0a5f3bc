//! IQ4_XS: a word of f16 d and high scale bits, a word of low scale nibbles, 32 words of nibbles that index a table of
//! 16 values. value = d · (scale − 32) · table[nibble], one scale per 32 values.

use super::*;

pub(in crate::matmul) struct Iq4Xs;

impl Format for Iq4Xs {
    type Rule = SignedRule;
    type Words = [Line; 34];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn header<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS]) -> [L::F; 2] {
        [l.f16_low(l.load(&words[0])); 2]
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        iq4_quants(l, &words[2 + 4 * sub..])
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, header: [L::F; 2], sub: usize) -> Scales<L::F> {
        let low = l.and(l.shr(l.load(&words[1]), 4 * sub as u32), l.splat(0x0f));
        let high = l.and(l.shr(l.load(&words[0]), 16 + 2 * sub as u32), l.splat(0x03));
        let scale = l.sub(l.or(low, l.shl(high, 4)), l.splat(32));
        Scales::one(l.mul(header[0], l.to_f32(scale)))
    }
}
