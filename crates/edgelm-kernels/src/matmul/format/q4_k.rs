//! Q4_K: a word of f16 d and f16 dmin, 3 words of 6-bit scales and mins, 32 words of nibbles.
//! value = d · scale · nibble − dmin · min, one scale and min per 32 values.
//!
//! Eight words hold two sub-blocks: the even one in the low nibbles, the odd one in the high nibbles.

use super::*;

pub(in crate::matmul) struct Q4K;

impl Rule for Q4K {
    const KIND: Kind = Kind::Unsigned(15);
    const MINS: bool = true;
}

impl Format for Q4K {
    type Rule = Self;
    type Words = [Line; 36];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn header<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS]) -> [L::F; 2] {
        word_header(l, &words[0])
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 2 * 8..], sub % 2 * 4, 0x0f)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, header: [L::F; 2], sub: usize) -> Scales<L::F> {
        let [scale, min] = scale_and_min(l, &words[1..4], sub);
        Scales::with_min(l.mul(header[0], l.to_f32(scale)), l.mul(header[1], l.to_f32(min)))
    }
}
