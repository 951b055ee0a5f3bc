//! Q8_0: f16 scale, 8 words of signed bytes. value = scale · byte.

use super::*;

pub(in crate::matmul) struct Q8_0;

impl Format for Q8_0 {
    type Rule = SignedRule;
    type Words = [Line; 8];
    const SUBS: usize = 1;
    const WORDS_AT: usize = 2;
    const HALF_AT: Option<usize> = Some(0);

    #[inline(always)]
    fn header<L: Lanes>(l: L, _: &Self::Words, half: &[u16; ROWS]) -> [L::F; 2] {
        half_header(l, half)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, _: usize) -> [L::U; 8] {
        let mut q = [l.splat(0); 8];
        for j in 0..8 {
            q[j] = l.signed(l.load(&words[j]));
        }
        q
    }
    #[inline(always)]
    fn scales<L: Lanes>(_: L, _: &Self::Words, header: [L::F; 2], _: usize) -> Scales<L::F> {
        Scales::one(header[0])
    }
}
