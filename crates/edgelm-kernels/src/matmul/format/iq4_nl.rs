//! IQ4_NL: f16 scale, 4 words of nibbles that index a table of 16 values. value = scale · table[nibble].

use super::*;

pub(in crate::matmul) struct Iq4Nl;

impl Format for Iq4Nl {
    type Rule = SignedRule;
    type Words = [Line; 4];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn header<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS]) -> [L::F; 2] {
        half_header(l, half)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        iq4_quants(l, words)
    }
    #[inline(always)]
    fn scales<L: Lanes>(_: L, _: &Self::Words, header: [L::F; 2], _: usize) -> Scales<L::F> {
        Scales::one(header[0])
    }
}
