//! Rows of f32 into a page's format and layout.

use super::page::{HeadPageMut, Layout, Page, component_rows, key_pairs, value_chunks};
use super::{GROUP_TOKENS, KvShape, rotate};
use crate::simd::LANES;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Writes tokens `token..` of a page from `k` and `v`, rows of `[T, G, E]`.
pub(super) fn write(page: &mut Page, layout: &Layout, token: usize, k: &[f32], v: &[f32]) {
    let KvShape { num_key_value_heads: heads, head_dim } = layout.shape();
    let values_at = |token: usize| token * value_chunks(head_dim) * LANES;
    let mut rotated = [Vec::new(), Vec::new()];
    for head in 0..heads {
        let mut part = layout.head_mut(page, head);
        let rows = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).skip(head).step_by(heads);
        for (token, (k, v)) in (token..).zip(rows) {
            match &mut part {
                HeadPageMut::F32 { k: keys, v: values } => {
                    interleave(group(keys, token, head_dim), token, k);
                    values[values_at(token)..][..head_dim].copy_from_slice(v);
                }
                HeadPageMut::F16 { k: keys, v: values } => {
                    let keys = group(keys, token, head_dim);
                    for (index, piece) in k.chunks(LANES).enumerate() {
                        interleave(&mut keys[index * LANES * GROUP_TOKENS..], token, &halves(piece)[..piece.len()]);
                    }
                    let values = &mut values[values_at(token)..][..head_dim];
                    for (to, piece) in values.chunks_mut(LANES).zip(v.chunks(LANES)) {
                        to.copy_from_slice(&halves(piece)[..piece.len()]);
                    }
                }
                HeadPageMut::Q8 { k: keys, v: values, k_scales, v_scales } => {
                    let (key_fit, value_fit) = (Quantizer::fit(k), Quantizer::fit(v));
                    v_scales[token] = value_fit.scale;
                    // Weights are multiplied by the scales of values and then rounded to bytes, which could hide a fault; a score
                    // cannot.
                    k_scales[token] = if value_fit.scale.is_nan() { f32::NAN } else { key_fit.scale };
                    let quads = component_rows(head_dim) / 4;
                    let (group, lane) = (token / GROUP_TOKENS, token % GROUP_TOKENS);
                    let mut lines = keys[group * quads..][..quads].iter_mut();
                    for piece in k.chunks(LANES) {
                        let bytes = key_fit.bytes(piece);
                        for (word, line) in bytes.as_chunks::<4>().0.iter().zip(&mut lines) {
                            line.0[lane] = u32::from_le_bytes(word.map(|byte| byte as u8));
                        }
                    }
                    let line = token / 4 * value_chunks(head_dim);
                    for (to, piece) in values[line..].iter_mut().zip(v.chunks(LANES)) {
                        let shift = 8 * (token % 4);
                        for (word, byte) in to.0.iter_mut().zip(value_fit.bytes(piece)) {
                            *word = *word & !(0xFF << shift) | u32::from(byte as u8) << shift;
                        }
                    }
                }
                HeadPageMut::Q4 { k: keys, v: values, k_scales, v_scales } => {
                    for (to, from) in rotated.iter_mut().zip([k, v]) {
                        to.clear();
                        to.extend_from_slice(from);
                        rotate(to);
                    }
                    let [k, v] = &rotated;
                    let (key_fit, value_fit) = (Quantizer::nibbles(k), Quantizer::nibbles(v));
                    v_scales[token] = value_fit.scale;
                    k_scales[token] = if value_fit.scale.is_nan() { f32::NAN } else { key_fit.scale };
                    let pairs = key_pairs(head_dim);
                    let (group, lane) = (token / GROUP_TOKENS, token % GROUP_TOKENS);
                    let lines = keys[group * pairs..][..pairs].as_chunks_mut::<2>();
                    let lines = lines.0.iter_mut().map(|pair| &mut pair[..]).chain(std::iter::once(lines.1));
                    for (lines, piece) in lines.zip(k.chunks(LANES)) {
                        let bytes = key_fit.bytes(piece);
                        for (line, eight) in lines.iter_mut().zip(bytes.as_chunks::<8>().0) {
                            let byte = |i: usize| eight[i] as u8 & 15 | (eight[i + 4] as u8) << 4;
                            line.0[lane] = u32::from_le_bytes(std::array::from_fn(byte));
                        }
                    }
                    let line = token / 8 * value_chunks(head_dim);
                    for (to, piece) in values[line..].iter_mut().zip(v.chunks(LANES)) {
                        let shift = 8 * (token % 4) + token % 8 / 4 * 4;
                        for (word, byte) in to.0.iter_mut().zip(value_fit.bytes(piece)) {
                            *word = *word & !(0xF << shift) | u32::from(byte as u8 & 15) << shift;
                        }
                    }
                }
            }
        }
    }
}

/// Keys of the group that `token` is in.
fn group<T>(keys: &mut [T], token: usize, head_dim: usize) -> &mut [T] {
    let len = component_rows(head_dim) * GROUP_TOKENS;
    &mut keys[token / GROUP_TOKENS * len..][..len]
}

/// Puts the components of one token into its lane.
fn interleave<T: Copy>(keys: &mut [T], token: usize, row: &[T]) {
    for (slot, &x) in keys.chunks_exact_mut(GROUP_TOKENS).zip(row) {
        slot[token % GROUP_TOKENS] = x;
    }
}

/// Up to sixteen numbers in half precision, rounded to nearest even. What it cannot reach becomes its largest number rather than infinity, whose
/// products with zero would spread NaN over the whole head.
fn halves(piece: &[f32]) -> [u16; LANES] {
    let largest = f16::MAX.to_f32_const();
    let mut floats = [0.0; LANES];
    for (to, x) in floats.iter_mut().zip(piece) {
        *to = x.clamp(-largest, largest);
    }
    let mut halves = [f16::ZERO; LANES];
    halves.convert_from_f32_slice(&floats);
    halves.map(f16::to_bits)
}

/// byte = round(x / scale), ties to even, with scale = max|x| / 127, or / 7.
///
/// Numerics: x is off by at most scale / 2. A row below 3.8e-37 becomes zeros; a row with an infinity or a NaN gets a NaN
/// scale, so that the fault stays visible. The same bits on every CPU.
pub(crate) struct Quantizer {
    pub(crate) scale: f32,
    inverse: f32,
}

impl Quantizer {
    /// Bytes of eight bits.
    #[inline(always)]
    pub(crate) fn fit(row: &[f32]) -> Self {
        Self::fit_to(row, 127.0)
    }

    /// Bytes of four bits.
    #[inline(always)]
    fn nibbles(row: &[f32]) -> Self {
        Self::fit_to(row, 7.0)
    }

    #[inline(always)]
    fn fit_to(row: &[f32], steps: f32) -> Self {
        // As integers magnitudes compare the same way, and NaN exceeds infinity exceeds the rest.
        let magnitude = row.iter().fold(0, |largest: i32, x| largest.max((x.to_bits() & 0x7FFF_FFFF) as i32));
        let largest = f32::from_bits(magnitude as u32);
        let inverse = steps / largest;
        if !largest.is_finite() {
            Self { scale: f32::NAN, inverse: 0.0 }
        } else if inverse.is_finite() {
            Self { scale: largest / steps, inverse }
        } else {
            Self { scale: 0.0, inverse: 0.0 }
        }
    }

    /// Up to sixteen numbers of the row; zeros follow.
    #[inline(always)]
    pub(crate) fn bytes(&self, piece: &[f32]) -> [i8; LANES] {
        // Adding 1.5 · 2²³ leaves no bits for a fraction, and the integer in the low ones.
        const SHIFT: f32 = 12_582_912.0;
        let mut row = [0.0; LANES];
        row[..piece.len()].copy_from_slice(piece);
        row.map(|x| (x * self.inverse + SHIFT).to_bits() as i8)
    }
}
