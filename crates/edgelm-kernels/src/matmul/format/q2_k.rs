//! Q2_K: 4 words of scale and min nibbles, 16 words of bit pairs, a word of f16 d and f16 dmin.
//! value = d · scale · pair − dmin · min, one scale and min per 16 values.
//!
//! Each half of 128 values has 8 words; pair t of every byte is its sub-block t.

use super::*;

pub(in crate::matmul) struct Q2K;

impl Rule for Q2K {
    const KIND: Kind = Kind::Unsigned(3);
    const PER_16: bool = true;
    const MINS: bool = true;
}

impl Format for Q2K {
    type Rule = Self;
    type Words = [Line; 21];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn header<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS]) -> [L::F; 2] {
        word_header(l, &words[20])
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 4 * 8..], sub % 4 * 2, 0x03)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, header: [L::F; 2], sub: usize) -> Scales<L::F> {
        let (first, second) = (byte(l, &words[..4], 2 * sub), byte(l, &words[..4], 2 * sub + 1));
        let nibble = l.splat(0x0f);
        let scales = [l.to_f32(l.and(first, nibble)), l.to_f32(l.and(second, nibble))];
        let mins = [l.to_f32(l.shr(first, 4)), l.to_f32(l.shr(second, 4))];
        Scales {
            scale: [l.mul(header[0], scales[0]), l.mul(header[0], scales[1])],
            min: [l.mul(header[1], mins[0]), l.mul(header[1], mins[1])],
        }
    }
}
