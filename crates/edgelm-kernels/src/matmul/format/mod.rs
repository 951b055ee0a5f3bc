//! How each quantized format is unpacked, written once for all instruction sets. One file per format.
//!
//! Packed form: 16 rows form a tile. Within a tile the blocks of the rows stand side by side: 32-bit word w of the
//! block is one [`Line`] holding that word of 16 rows, and a lone f16 scale is 16 halves in a section of its own. So a
//! lane is a row, and decoding a nibble, a scale or a high bit is the same lane-wise shift and mask in every format.
//!
//! A block is read 32 values (a *sub-block*) at a time: vector j of a sub-block holds values 4j .. 4j + 4, one per byte.
//! The byte layouts are those of GGUF; see `edgelm_tensor::block` for their definition.

mod codebook;
mod fp4;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nf4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_24;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_24;
mod rule;
mod tq2_0;

pub(super) use fp4::Fp4;
pub(super) use iq2_s::Iq2S;
pub(super) use iq2_xs::Iq2Xs;
pub(super) use iq2_xxs::Iq2Xxs;
pub(super) use iq3_s::Iq3S;
pub(super) use iq3_xxs::Iq3Xxs;
pub(super) use iq4_nl::Iq4Nl;
pub(super) use iq4_xs::Iq4Xs;
pub(super) use mxfp4::{Mxfp4, with_half};
pub(super) use nf4::Nf4;
pub(super) use q2_k::Q2K;
pub(super) use q3_k::Q3K;
pub(super) use q4_0::Q4_0;
pub(super) use q4_1::Q4_1;
pub(super) use q4_24::Q4Sparse;
pub(super) use q4_k::Q4K;
pub(super) use q5_0::Q5_0;
pub(super) use q5_1::Q5_1;
pub(super) use q5_k::Q5K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;
pub(super) use q8_24::Q8Sparse;
pub(super) use rule::{Per16, Per16WithMins, Rule, Signed, SignedPer16, Unsigned, WithMins};
pub(super) use tq2_0::{Tq2_0, from_tq1_0};

use super::lanes::{Lanes, Line, ROWS};
use codebook::*;

/// The unit of a group, per row, and what turns its scales and mins, as they are stored, into integers of it.
#[derive(Clone, Copy)]
pub(super) struct Units<L: Lanes> {
    pub(super) unit: L::F,
    /// Its reciprocal.
    per_unit: L::F,
    /// Of formats whose scales and mins are integers times d and dmin: these in units, see [`mins_units`].
    factors: L::U,
}

impl<L: Lanes> Units<L> {
    /// Of a format whose scales are integers already, and which has no mins.
    #[inline(always)]
    fn stored(l: L, unit: L::F) -> Self {
        Self::rounded(l, [unit; 2])
    }

    #[inline(always)]
    fn rounded(l: L, [unit, per_unit]: [L::F; 2]) -> Self {
        Self { unit, per_unit, factors: l.splat(0) }
    }
}

/// Scales of a sub-block, per row.
#[derive(Clone, Copy)]
pub(super) struct Scales<U> {
    /// i32; with one scale per 32 values, only the first is used.
    pub(super) scale: [U; 2],
    /// i16: of both halves in a word, or of all 32 values in its high half.
    pub(super) mins: U,
}

impl<U: Copy> Scales<U> {
    #[inline(always)]
    fn one(scale: U) -> Self {
        Self { scale: [scale; 2], mins: scale }
    }
    #[inline(always)]
    fn with_min<L: Lanes<U = U>>(l: L, scale: U, min: U) -> Self {
        Self { scale: [scale; 2], mins: l.shl(min, 16) }
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
    fn units<L: Lanes>(l: L, words: &[Self::Words], halves: &[[u16; ROWS]]) -> Units<L>;
    /// The 32 quants of a sub-block.
    fn quants<L: Lanes>(l: L, words: &Self::Words, sub: usize) -> [L::U; 8];
    /// The scales of a sub-block.
    fn scales<L: Lanes>(l: L, words: &Self::Words, half: &[u16; ROWS], units: &Units<L>, sub: usize) -> Scales<L::U>;
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
fn half_units<L: Lanes>(l: L, halves: &[[u16; ROWS]], steps: f32) -> Units<L> {
    let mut largest = l.splat(0);
    for half in halves {
        largest = larger(l, largest, l.load_u16(half));
    }
    Units::rounded(l, unit_of(l, l.f16_low(largest), steps))
}

#[inline(always)]
fn half_scale<L: Lanes>(l: L, half: &[u16; ROWS], units: &Units<L>) -> Scales<L::U> {
    Scales::one(l.round(l.mul(l.load_f16(half), units.per_unit)))
}

/// [`unit_of`] what a value may be at most. 2^14 less what rounding may add: scales are up to one unit off, values up to 31;
/// and so that [`mins_units`] has factors that fit.
const RANGE_STEPS: f32 = 15000.0;

/// Units of formats whose blocks of 32 values, quants up to `max`, begin with an f16 scale and an f16 min.
#[inline(always)]
fn word_units<L: Lanes, W: Words>(l: L, blocks: &[W], max: f32) -> Units<L> {
    let mut largest = [l.splat(0); 2];
    for words in blocks {
        let word = l.load(&words.lines()[0]);
        largest = [larger(l, largest[0], word), larger(l, largest[1], l.shr(word, 16))];
    }
    let range = l.fma(l.f16_low(largest[0]), l.splat_f32(max), l.f16_low(largest[1]));
    Units::rounded(l, unit_of(l, range, RANGE_STEPS))
}

#[inline(always)]
fn word_scale<L: Lanes>(l: L, word: &Line, units: &Units<L>) -> Scales<L::U> {
    let [scale, min] = word_floats(l, word);
    Scales::with_min(l, l.round(l.mul(scale, units.per_unit)), l.round(l.mul(min, units.per_unit)))
}

/// The two f16 of a word.
#[inline(always)]
fn word_floats<L: Lanes>(l: L, word: &Line) -> [L::F; 2] {
    let word = l.load(word);
    [l.f16_low(word), l.f16_low(l.shr(word, 16))]
}

/// Units of k-quants that keep d and dmin in one word, and scales and mins of `BITS` bits. Values are d · scale · quant −
/// dmin · min, with quants up to `max_quant`.
///
/// Their factors are d and −dmin, as i16, counted in 2^−BITS of the unit. With [`Lanes::mul_fractions`] they turn a scale or
/// min that stands in the bits below the sign of an i16 into units.
#[inline(always)]
fn mins_units<L: Lanes, const BITS: u32>(l: L, word: &Line, max_quant: f32) -> Units<L> {
    let [d, dmin] = word_floats(l, word);
    let magnitude = l.splat(0x7fff_ffff);
    let [d_range, min_range] =
        [l.as_floats(l.and(l.as_bits(d), magnitude)), l.as_floats(l.and(l.as_bits(dmin), magnitude))];
    let max = ((1 << BITS) - 1) as f32;
    let range = l.fma(d_range, l.splat_f32(max * max_quant), l.mul(min_range, l.splat_f32(max)));
    let [unit, per_unit] = unit_of(l, range, RANGE_STEPS);
    // At most 2 · RANGE_STEPS / max · 2^BITS, below 2^15.
    let per_one = l.mul(per_unit, l.splat_f32((1 << BITS) as f32));
    let scale = l.round(l.mul(d, per_one));
    let min = l.round(l.mul(l.mul(dmin, l.splat_f32(-1.0)), per_one));
    Units { unit, per_unit, factors: l.pair(scale, min) }
}

/// The low half of a word, as i16.
#[inline(always)]
fn low_half<L: Lanes>(l: L, word: L::U) -> L::U {
    l.sar(l.shl(word, 16), 16)
}

/// Units of k-quants whose d is a lone f16.
#[inline(always)]
fn half_units_stored<L: Lanes>(l: L, halves: &[[u16; ROWS]]) -> Units<L> {
    Units::stored(l, l.load_f16(&halves[0]))
}

/// Units of formats whose scales count a power of two less than d, a lone f16.
#[inline(always)]
fn half_units_part<L: Lanes>(l: L, halves: &[[u16; ROWS]], part: f32) -> Units<L> {
    Units::stored(l, l.mul(l.load_f16(&halves[0]), l.splat_f32(part)))
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

/// Fifth bits of 32 quants, arranged by [`arrange_bits`], in place: 0 or 16 per byte.
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

/// GGUF keeps a bit of value 4j + b at bit 4j + b, here it moves to bit j of byte b, so that the four bits of
/// one vector are one shift and mask away from their bytes.
fn arrange_bits(line: &mut Line) {
    let mut arranged = Line::ZERO;
    for value in 0..32 {
        let (vector, byte) = (value / 4, value % 4);
        for (to, from) in arranged.0.iter_mut().zip(line.0) {
            *to |= (from >> value & 1) << (8 * byte + vector);
        }
    }
    *line = arranged;
}

/// Rearranges the 12 bytes in which Q4_K and Q5_K keep 6-bit scales and mins, for [`scale_and_min`].
///
/// GGUF: the first four pairs have a byte each, scales in the first word and mins in the second; the low nibbles of the last
/// four fill the third word and their top bits the free ones of the others. Here: scales stand in the low halves of the words
/// and mins in the high ones. Pairs 2w and 2w + 1 take bits 0 .. 6 and 6 .. 12 of word w. The last four bits of words 0
/// and 1 are the top ones of pairs 6 and 7, those of word 2 the low two of both.
fn arrange_scales(words: &mut [Line]) {
    for lane in 0..ROWS {
        let [scales, mins, rest] = [words[0].0[lane], words[1].0[lane], words[2].0[lane]].map(u32::to_le_bytes);
        let pair = |sub: usize| match sub {
            0..4 => u32::from(scales[sub] & 63) | u32::from(mins[sub] & 63) << 16,
            _ => {
                let (scale, min, rest) = (scales[sub - 4] >> 6, mins[sub - 4] >> 6, rest[sub - 4]);
                u32::from(rest & 15 | scale << 4) | u32::from(rest >> 4 | min << 4) << 16
            }
        };
        let (top, low) = (0x003c_003c, 0x0003_0003);
        let rest = [(pair(6) & top) << 10, (pair(7) & top) << 10, (pair(6) & low) << 12 | (pair(7) & low) << 14];
        for w in 0..3 {
            words[w].0[lane] = pair(2 * w) | pair(2 * w + 1) << 6 | rest[w];
        }
    }
}

/// The scale and min of sub-block `sub`, both at bit 9 of their half, times the factors.
#[inline(always)]
fn scale_and_min<L: Lanes>(l: L, words: &[Line], sub: usize, units: &Units<L>) -> Scales<L::U> {
    let fraction = if sub < 6 {
        l.and(l.shl(l.load(&words[sub / 2]), if sub.is_multiple_of(2) { 9 } else { 3 }), l.splat(0x7e00_7e00))
    } else {
        let top = l.and(l.shr(l.load(&words[sub - 6]), 1), l.splat(0x7800_7800));
        let low = l.and(l.shr(l.load(&words[2]), if sub == 6 { 3 } else { 5 }), l.splat(0x0600_0600));
        l.or(top, low)
    };
    let both = l.mul_fractions(fraction, units.factors);
    Scales { scale: [low_half(l, both); 2], mins: both }
}

/// The units of `half_units` for quants of which `one` stand for 1.
#[inline(always)]
fn half_units_of_one<L: Lanes>(l: L, halves: &[[u16; ROWS]], steps: f32, one: f32) -> Units<L> {
    let units = half_units(l, halves, steps);
    Units { unit: l.mul(units.unit, l.splat_f32(1.0 / one)), ..units }
}

/// Values from −1 to 1 as bytes of which `one` stand for 1.
const fn table_of_values(values: &[f32; 16], one: f32) -> [i8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        let value = values[i] * one;
        table[i] = (if value < 0.0 { value - 0.5 } else { value + 0.5 }) as i8;
        i += 1;
    }
    table
}

/// 32 nibbles of 4 words that index a table.
#[inline(always)]
fn table_quants<L: Lanes>(l: L, words: &[Line], table: &[i8; 16]) -> [L::U; 8] {
    let mut q = split_nibbles(l, words);
    for vector in &mut q {
        *vector = l.signed(l.lookup(table, *vector));
    }
    q
}

/// 32 bytes of the 16 that are kept, two of every four, in 4 vectors, and masks of four bits each; 0 for the others.
#[inline(always)]
fn spread_quants<L: Lanes>(l: L, kept: [L::U; 4], masks: L::U) -> [L::U; 8] {
    let mut q = [masks; 8];
    for w in 0..4 {
        q[2 * w] = l.spread::<0>(kept[w], l.shr(masks, 8 * w as u32));
        q[2 * w + 1] = l.spread::<1>(kept[w], l.shr(masks, 8 * w as u32 + 4));
    }
    q
}
