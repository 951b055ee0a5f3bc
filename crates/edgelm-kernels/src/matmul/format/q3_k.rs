//! Q3_K: 8 words of third bits, 16 words of bit pairs, 3 words of 6-bit scales, f16 d.
//! value = d · (scale − 32) · (quant − 4), one scale per 16 values.
//!
//! Bit s of third-bit byte i belongs to value i of sub-block s; each half of 128 values has 8 words of pairs, pair t for
//! its sub-block t. Scale i has its low nibble at nibble i / 8 of byte i % 8 and its top bits at pair i / 4 of byte
//! 8 + i % 4.

use super::*;

pub(in crate::matmul) struct Q3K;

impl Format for Q3K {
    type Rule = Per16<7, 4>;
    type Words = [Line; 27];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;
    const HALF_AT: Option<usize> = Some(108);

    #[inline(always)]
    fn units<L: Lanes>(l: L, _: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L> {
        half_units_stored(l, halves)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        let low = bits(l, &words[8 + sub / 4 * 8..], sub % 4 * 2, 0x03);
        join(l, low, bits(l, &words[0..8], sub, 0x01), 2)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], _: &Units<L>, sub: usize) -> Scales<L::U> {
        Scales::two([scale(l, words, 2 * sub), scale(l, words, 2 * sub + 1)])
    }
}

/// scale − 32 of 16 values.
#[inline(always)]
fn scale<L: Lanes>(l: L, words: &[Line; 27], index: usize) -> L::U {
    let (low, top) = (l.load(&words[24 + index / 4 % 2]), l.load(&words[26]));
    let at = 8 * (index % 4) as u32;
    let nibble = l.and(l.shr(low, at + 4 * (index / 8) as u32), l.splat(0x0f));
    let pair = l.and(l.shr(top, at + 2 * (index / 4) as u32), l.splat(0x03));
    l.sub(l.or(nibble, l.shl(pair, 4)), l.splat(32))
}
