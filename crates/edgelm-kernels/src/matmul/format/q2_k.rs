//! Q2_K: 4 words of scale and min nibbles, 16 words of bit pairs, a word of f16 d and f16 dmin.
//! value = d · scale · pair − dmin · min, one scale and min per 16 values.
//!
//! Each half of 128 values has 8 words; pair t of every byte is its sub-block t.

use super::*;

pub(in crate::matmul) struct Q2K;

impl Format for Q2K {
    type Rule = Per16WithMins<3>;
    type Words = [Line; 21];
    const SUBS: usize = 8;
    const WORDS_AT: usize = 0;

    #[inline(always)]
    fn units<L: Lanes>(l: L, words: &[Self::Words], _: &[[u16; ROWS]]) -> Units<L> {
        mins_units::<L, 4>(l, &words[0][20], 3.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8] {
        bits(l, &words[4 + sub / 4 * 8..], sub % 4 * 2, 0x03)
    }
    #[inline(always)]
    fn scales<L: Lanes>(l: L, words: &Self::Words, _: &[u16; ROWS], units: &Units<L>, sub: usize) -> Scales<L::U> {
        // Two bytes, the low nibbles scales and the high ones mins.
        let bytes = l.shr(l.load(&words[sub / 2]), 16 * (sub % 2) as u32);
        let (scale, min) = (units.factors, l.shr(units.factors, 16));
        let scales = l.mul_fractions(spread(l, bytes, 0), l.pair(scale, scale));
        let mins = l.mul_fractions(spread(l, bytes, 4), l.pair(min, min));
        Scales { scale: [low_half(l, scales), l.sar(scales, 16)], mins }
    }
}

/// The nibbles at bit `at` of the two low bytes of a word, each below the sign of an i16.
#[inline(always)]
fn spread<L: Lanes>(l: L, bytes: L::U, at: u32) -> L::U {
    let (low, high) = (l.splat(0x7800), l.splat(0x7800_0000));
    l.or(l.and(l.shl(bytes, 11 - at), low), l.and(l.shl(bytes, 19 - at), high))
}
