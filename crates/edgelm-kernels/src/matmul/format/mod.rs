//! How each quantized format is unpacked, written once for all instruction sets. One file per format.
//!
//! Packed form: 16 rows form a tile. Within a tile the blocks of the rows stand side by side: 32-bit word w of the
//! block is one [`Line`] holding that word of 16 rows, and a lone f16 scale is 16 halves in a section of its own. So a
//! lane is a row, and decoding a nibble, a scale or a high bit is the same lane-wise shift and mask in every format.
//!
//! A block is read 32 values (a *sub-block*) at a time: vector j of a sub-block holds values 4j .. 4j + 4, one per byte.
//! The byte layouts are those of GGUF; see `edgelm_tensor::block` for their definition.

mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rule;

pub(super) use iq4_nl::Iq4Nl;
pub(super) use iq4_xs::Iq4Xs;
pub(super) use q2_k::Q2K;
pub(super) use q3_k::Q3K;
pub(super) use q4_0::Q4_0;
pub(super) use q4_1::Q4_1;
pub(super) use q4_k::Q4K;
pub(super) use q5_0::Q5_0;
pub(super) use q5_1::Q5_1;
pub(super) use q5_k::Q5K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;
pub(super) use rule::{Per16, Per16WithMins, Rule, Signed, Unsigned, WithMins};

use super::lanes::{Lanes, Line, ROWS};
use edgelm_tensor::block::IQ4_VALUES;

/// Units of a group, per row, and what turns its scales and mins, as they are stored, into integers of these units.
#[derive(Clone, Copy)]
pub(super) struct Units<F> {
    pub(super) unit: F,
    per_scale: F,
    per_min: F,
}

impl<F: Copy> Units<F> {
    /// Of a format whose scales are integers already, and which has no mins.
    #[inline(always)]
    fn stored(unit: F) -> Self {
        Self { unit, per_scale: unit, per_min: unit }
    }
}

/// Scales of a sub-block, per row.
#[derive(Clone, Copy)]
pub(super) struct Scales<U> {
    /// i32; with one scale per 32 values, only the first is used.
    pub(super) scale: [U; 2],
    /// Of both halves, two i16 in a word.
    pub(super) mins: U,
}

impl<U: Copy> Scales<U> {
    #[inline(always)]
    fn one(scale: U) -> Self {
        Self { scale: [scale; 2], mins: scale }
    }
    #[inline(always)]
    fn with_min<L: Lanes<U = U>>(l: L, scale: U, min: U) -> Self {
        Self { scale: [scale; 2], mins: l.pair(min, min) }
    }
    #[inline(always)]
    fn two(scale: [U; 2]) -> Self {
        Self { scale, mins: scale[0] }
    }
}

/// The words of one packed block: `[Line; N]`.
pub(super) trait Words: Sized + 'static {
    const COUNT: usize;
    fn cut(lines: &[Line]) -> &[Self];
    fn lines(&self) -> &[Line];
}

impl<const N: usize> Words for [Line; N] {
    const COUNT: usize = N;
    #[inline(always)]
    fn cut(lines: &[Line]) -> &[Self] {
        lines.as_chunks().0
    }
    #[inline(always)]
    fn lines(&self) -> &[Line] {
        self
    }
}

/// One quantized format. Methods are `#[inline(always)]`.
pub(super) trait Format {
    type Rule: Rule;
    /// Words per block, `[Line; N]`.
    type Words: Words;
    /// Sub-blocks of 32 values per block.
    const SUBS: usize;
    /// Where the words start in a GGUF block.
    const WORDS_AT: usize;
    /// Where the f16 that belongs to no word stands.
    const HALF_AT: Option<usize> = None;

    /// Rearranges the words of a block, the same in every lane, once, at packing time.
    fn arrange(words: &mut [Line]) {
        let _ = words;
    }

    /// What a group shares: up to four blocks of 32 values, or one of 256 of which it is one half; and their lone f16.
    fn units<L: Lanes>(l: L, words: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L::F>;
    /// The 32 quants of a sub-block.
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8];
    /// The scales of a sub-block.
    fn scales<L: Lanes>(l: L, words: &Self::Words, half: &[u16; ROWS], units: &Units<L::F>, sub: usize)
    -> Scales<L::U>;
}

/// The larger of `largest` and the magnitude of an f16 in the low half of each word.
#[inline(always)]
fn larger<L: Lanes>(l: L, largest: L::U, half: L::U) -> L::U {
    l.max(largest, l.and(half, l.splat(0x7fff)))
}

/// A unit such that `steps` of it make the power of two at or below `largest`, and its reciprocal. With `steps` a power
/// of two, a magnitude of 11 bits is a whole number of units, and so is any that is not much smaller.
#[inline(always)]
fn unit_of<L: Lanes>(l: L, largest: L::F, steps: f32) -> [L::F; 2] {
    // Zero counts as the smallest f16 there is, so that no unit is zero.
    let bits = l.max(l.as_bits(largest), l.splat((127 - 24) << 23));
    let exponent = l.and(bits, l.splat(0x7f80_0000));
    // What is not finite must show in the results, as a unit that is not a number.
    let power = l.fma(largest, l.splat_f32(0.0), l.as_floats(exponent));
    let reciprocal = l.as_floats(l.sub(l.splat(254 << 23), exponent));
    [l.mul(power, l.splat_f32(1.0 / steps)), l.mul(reciprocal, l.splat_f32(steps))]
}

/// Units of formats that have a lone f16 scale for every 32 values.
#[inline(always)]
fn half_units<L: Lanes>(l: L, halves: &[[u16; ROWS]], steps: f32) -> Units<L::F> {
    let mut largest = l.splat(0);
    for half in halves {
        largest = larger(l, largest, l.load_u16(half));
    }
    let [unit, per_unit] = unit_of(l, l.f16_low(largest), steps);
    Units { unit, per_scale: per_unit, per_min: per_unit }
}

#[inline(always)]
fn half_scale<L: Lanes>(l: L, half: &[u16; ROWS], units: &Units<L::F>) -> Scales<L::U> {
    Scales::one(l.round(l.mul(l.load_f16(half), units.per_scale)))
}

/// [`unit_of`] 2¹⁴ less what rounding may add: with a scale rounded by half a unit, up to 31 / 2 in a value.
const RANGE_STEPS: f32 = 16384.0 - 32.0;

/// Units of formats whose blocks of 32 values, quants up to `max`, begin with an f16 scale and an f16 min.
#[inline(always)]
fn word_units<L: Lanes, W: Words>(l: L, blocks: &[W], max: f32) -> Units<L::F> {
    let mut largest = [l.splat(0); 2];
    for words in blocks {
        let word = l.load(&words.lines()[0]);
        largest = [larger(l, largest[0], word), larger(l, largest[1], l.shr(word, 16))];
    }
    let range = l.fma(l.f16_low(largest[0]), l.splat_f32(max), l.f16_low(largest[1]));
    let [unit, per_unit] = unit_of(l, range, RANGE_STEPS);
    Units { unit, per_scale: per_unit, per_min: per_unit }
}

#[inline(always)]
fn word_scale<L: Lanes>(l: L, word: &Line, units: &Units<L::F>) -> Scales<L::U> {
    let [scale, min] = word_floats(l, word);
    Scales::with_min(l, l.round(l.mul(scale, units.per_scale)), l.round(l.mul(min, units.per_min)))
}

/// The two f16 of a word.
#[inline(always)]
fn word_floats<L: Lanes>(l: L, word: &Line) -> [L::F; 2] {
    let word = l.load(word);
    [l.f16_low(word), l.f16_low(l.shr(word, 16))]
}

/// Units of k-quants that keep d and dmin in one word; d · scale · quant is at most `max` · d, and dmin · min `max_min` · dmin.
#[inline(always)]
fn mins_units<L: Lanes>(l: L, word: &Line, max: f32, max_min: f32) -> Units<L::F> {
    let [d, dmin] = word_floats(l, word);
    let magnitude = l.splat(0x7fff_ffff);
    let d_range = l.as_floats(l.and(l.as_bits(d), magnitude));
    let min_range = l.as_floats(l.and(l.as_bits(dmin), magnitude));
    let range = l.fma(d_range, l.splat_f32(max), l.mul(min_range, l.splat_f32(max_min)));
    let [unit, per_unit] = unit_of(l, range, RANGE_STEPS);
    // They subtract their mins.
    Units { unit, per_scale: l.mul(d, per_unit), per_min: l.mul(l.mul(dmin, l.splat_f32(-1.0)), per_unit) }
}

/// The scale or min of a k-quant, an integer.
#[inline(always)]
fn in_units<L: Lanes>(l: L, stored: L::U, per_one: L::F) -> L::U {
    l.round(l.mul(l.to_f32(stored), per_one))
}

/// Units of k-quants whose d is a lone f16.
#[inline(always)]
fn half_units_stored<L: Lanes>(l: L, halves: &[[u16; ROWS]]) -> Units<L::F> {
    Units::stored(l.load_f16(&halves[0]))
}

/// 32 nibbles of 4 words: value k in the low half of byte k, value 16 + k in its high half.
#[inline(always)]
fn split_nibbles<L: Lanes>(l: L, words: &[Line]) -> [L::U; 8] {
    let mut q = [l.splat(0); 8];
    for j in 0..4 {
        let word = l.load(&words[j]);
        q[j] = l.byte_bits(word, 0, 0x0f);
        q[j + 4] = l.byte_bits(word, 4, 0x0f);
    }
    q
}

/// Bits `shift ..` under `mask` of the bytes of 8 consecutive words.
#[inline(always)]
fn bits<L: Lanes>(l: L, words: &[Line], shift: usize, mask: u8) -> [L::U; 8] {
    let mut q = [l.splat(0); 8];
    for j in 0..8 {
        q[j] = l.byte_bits(l.load(&words[j]), shift as u32, mask);
    }
    q
}

/// low | high << shift, vector by vector.
#[inline(always)]
fn join<L: Lanes>(l: L, low: [L::U; 8], high: [L::U; 8], shift: u32) -> [L::U; 8] {
    let mut q = low;
    for j in 0..8 {
        q[j] = l.or(low[j], l.shl(high[j], shift));
    }
    q
}

/// Fifth bits of 32 quants, arranged by [`arrange_fifth_bits`], in place: 0 or 16 per byte.
#[inline(always)]
fn fifth_bits<L: Lanes>(l: L, word: &Line) -> [L::U; 8] {
    let word = l.load(word);
    let mut high = [word; 8];
    for j in 0..8u32 {
        let moved = if j <= 4 { l.shl(word, 4 - j) } else { l.shr(word, j - 4) };
        high[j as usize] = l.and(moved, l.splat(0x1010_1010));
    }
    high
}

/// GGUF keeps the fifth bit of value 4j + b at bit 4j + b; here it moves to bit j of byte b, so that the four bits of
/// one vector are one shift and mask away from their bytes.
fn arrange_fifth_bits(line: &mut Line) {
    let mut arranged = Line::ZERO;
    for value in 0..32 {
        let (vector, byte) = (value / 4, value % 4);
        for (to, from) in arranged.0.iter_mut().zip(line.0) {
            *to |= (from >> value & 1) << (8 * byte + vector);
        }
    }
    *line = arranged;
}

/// Byte `index` of 16 bytes kept in 4 words, as an unsigned word.
#[inline(always)]
fn byte<L: Lanes>(l: L, words: &[Line], index: usize) -> L::U {
    l.and(l.shr(l.load(&words[index / 4]), 8 * (index % 4) as u32), l.splat(0xff))
}

/// The 6-bit scale and min of sub-block `sub` in the 12 bytes that Q4_K and Q5_K share: the first four pairs have a
/// byte each; the low nibbles of the last four fill the third word and their top bits the free ones of the others.
#[inline(always)]
fn scale_and_min<L: Lanes>(l: L, words: &[Line], sub: usize, units: &Units<L::F>) -> Scales<L::U> {
    let at = 8 * (sub % 4) as u32;
    let (scales, mins) = (l.load(&words[0]), l.load(&words[1]));
    let [scale, min] = if sub < 4 {
        let mask = l.splat(63);
        [l.and(l.shr(scales, at), mask), l.and(l.shr(mins, at), mask)]
    } else {
        let rest = l.shr(l.load(&words[2]), at);
        let (nibble, top) = (l.splat(0x0f), l.splat(0x30));
        [
            l.or(l.and(rest, nibble), l.and(l.shr(scales, at + 2), top)),
            l.or(l.and(l.shr(rest, 4), nibble), l.and(l.shr(mins, at + 2), top)),
        ]
    };
    Scales::with_min(l, in_units(l, scale, units.per_scale), in_units(l, min, units.per_min))
}

#[inline(always)]
fn iq4_quants<L: Lanes>(l: L, words: &[Line]) -> [L::U; 8] {
    let mut q = split_nibbles(l, words);
    for vector in &mut q {
        *vector = l.signed(l.lookup(&IQ4_VALUES, *vector));
    }
    q
}
