//! What the formats share whose values are vectors of a codebook: lookup, signs and odd scales.

use super::*;
use edgelm_tensor::block::IQ2_LEVELS;

/// A codebook of four values as bytes of words.
pub(super) const fn table_of_bytes<const N: usize>(grid: &[[u8; 4]; N], levels: [u8; 8]) -> [u32; N] {
    let mut table = [0; N];
    let mut index = 0;
    while index < N {
        let [a, b, c, d] = grid[index];
        table[index] =
            u32::from_le_bytes([levels[a as usize], levels[b as usize], levels[c as usize], levels[d as usize]]);
        index += 1;
    }
    table
}

/// A codebook of eight values as nibbles of words, numbers of levels: value k in the low half of byte k, value 4 + k in its
/// high half. One lookup in place of two, and half of the cache.
pub(super) const fn table_of_nibbles<const N: usize>(grid: &[[u8; 8]; N]) -> [u32; N] {
    let mut table = [0; N];
    let mut index = 0;
    while index < N {
        let [a, b, c, d, e, f, g, h] = grid[index];
        table[index] = u32::from_le_bytes([a | e << 4, b | f << 4, c | g << 4, d | h << 4]);
        index += 1;
    }
    table
}

/// `IQ2_LEVELS` for [`Lanes::lookup`].
const LEVELS: [i8; 16] = {
    let mut levels = [0; 16];
    let mut i = 0;
    while i < IQ2_LEVELS.len() {
        levels[i] = IQ2_LEVELS[i] as i8;
        i += 1;
    }
    levels
};

/// The 32 quants of four entries of a `table_of_nibbles`.
#[inline(always)]
pub(super) fn iq2_quants<L: Lanes>(l: L, entries: [L::U; 4], signs: L::U) -> [L::U; 8] {
    let mut q = [signs; 8];
    for k in 0..4 {
        q[2 * k] = with_signs(l, l.lookup(&LEVELS, l.byte_bits(entries[k], 0, 0x0f)), signs, 2 * k);
        q[2 * k + 1] = with_signs(l, l.lookup(&LEVELS, l.byte_bits(entries[k], 4, 0x0f)), signs, 2 * k + 1);
    }
    q
}

/// Byte `index` of each word.
#[inline(always)]
pub(super) fn byte<L: Lanes>(l: L, word: L::U, index: usize) -> L::U {
    l.and(l.shr(word, 8 * index as u32), l.splat(0xff))
}

/// Bits `from ..` of each word, moved to `to` and masked there.
#[inline(always)]
pub(super) fn moved<L: Lanes>(l: L, word: L::U, from: usize, to: usize, mask: u32) -> L::U {
    let moved = if from <= to { l.shl(word, (to - from) as u32) } else { l.shr(word, (from - to) as u32) };
    l.and(moved, l.splat(mask))
}

/// Magnitudes, which are not 0, with the signs of vector j, as quants. `signs` has them at bit j of each byte.
#[inline(always)]
pub(super) fn with_signs<L: Lanes>(l: L, magnitudes: L::U, signs: L::U, j: usize) -> L::U {
    // −m = !(m − 1) in every byte: no byte borrows from the next.
    let ones = l.and(l.shr(signs, j as u32), l.splat(0x0101_0101));
    let negative = l.sub(l.shl(ones, 8), ones);
    l.signed(l.xor(l.sub(magnitudes, ones), negative))
}

/// Of every word of signs arranged by [`arrange_even_signs`], the free bits: four, every other one from this one up.
pub(super) const SPARE_AT: usize = 25;

/// The signs of 32 values of which every eight have an even number of negative ones. `seven` are the first seven signs of
/// each eight. They are arranged as by [`arrange_bits`]; in place of the eighth signs stand the bits of `spare`.
pub(super) fn arrange_even_signs(seven: [u32; 4], spare: u32) -> u32 {
    let mut arranged = 0;
    for (k, signs) in seven.into_iter().enumerate() {
        for i in 0..7 {
            let (vector, byte) = (2 * k + i / 4, i % 4);
            arranged |= (signs >> i & 1) << (8 * byte + vector);
        }
        arranged |= (spare >> k & 1) << (SPARE_AT + 2 * k);
    }
    arranged
}

/// The same from a word of GGUF: four times seven signs, and a scale of four bits above them.
pub(super) fn arrange_signs_and_scale(word: u32) -> u32 {
    arrange_even_signs([0, 7, 14, 21].map(|at| word >> at & 127), word >> 28)
}

/// All 32 signs of a word arranged by [`arrange_even_signs`]: bit j of byte b for value 4j + b.
#[inline(always)]
pub(super) fn even_signs<L: Lanes>(l: L, arranged: L::U) -> L::U {
    let seven = l.and(arranged, l.splat(0x55ff_ffff));
    // The parity of every vector in the low byte, then that of every two in its odd bits.
    let halves = l.xor(seven, l.shr(seven, 16));
    let vectors = l.xor(halves, l.shr(halves, 8));
    let pairs = l.and(l.xor(vectors, l.shl(vectors, 1)), l.splat(0xaa));
    l.or(seven, l.shl(pairs, 24))
}

/// 2 · scale + 1 for scale number `index` of a word of nibbles.
#[inline(always)]
pub(super) fn odd_scale<L: Lanes>(l: L, word: L::U, index: usize) -> L::U {
    l.or(moved(l, word, 4 * index, 1, 0x1e), l.splat(1))
}

/// 2 · scale + 1 for the scale whose bits are the spare ones of [`arrange_even_signs`].
#[inline(always)]
pub(super) fn odd_scale_of_spare<L: Lanes>(l: L, arranged: L::U) -> L::U {
    let spread = moved(l, arranged, SPARE_AT, 1, 0xaa);
    let pairs = l.and(l.or(spread, l.shr(spread, 1)), l.splat(0x66));
    let scale = l.and(l.or(pairs, l.shr(pairs, 2)), l.splat(0x1e));
    l.or(scale, l.splat(1))
}
