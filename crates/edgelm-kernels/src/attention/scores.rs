//! From the product of a query and a key to what the softmax sees: scale, soft cap, bias of the distance, sinks.

use super::state::Base;
use crate::simd::{LANES, Lanes, tanh};

/// How scores come from products, and what else takes part in the softmax.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// Multiplies q·k, usually 1/sqrt(E).
    pub scale: f32,
    /// s ← c · tanh(s / c), after the scale (Gemma Team 2024, arXiv:2408.00118).
    pub softcap: Option<f32>,
    /// Added after the cap.
    pub alibi: Option<Alibi<'a>>,
    /// A logit per query head `[H]` that takes part in the softmax with a value of zeros (OpenAI 2025, arXiv:2508.10925).
    pub sinks: Option<&'a [f32]>,
}

/// Attention with linear biases: nearer keys score higher (Press et al. 2021, arXiv:2108.12409).
#[derive(Debug, Clone, Copy)]
pub struct Alibi<'a> {
    /// Per query head `[H]`.
    pub slopes: &'a [f32],
    /// False: slope · (position of the key - position of the query) is added to the scaled score.
    ///
    /// True: as Falcon was trained, scale · bf16(bf16(slope) · bf16(position of the key)), whose rounding, to nearest even,
    /// grows with the position and is part of the model.
    pub bfloat16: bool,
}

impl<'a> Scores<'a> {
    /// Nothing but a scale.
    pub const fn scaled(scale: f32) -> Self {
        Self { scale, softcap: None, alibi: None, sinks: None }
    }

    /// Panics if something does not fit `heads` query heads.
    pub(super) fn check(&self, heads: usize) {
        assert!(self.softcap.is_none_or(|cap| cap > 0.0), "a soft cap above 0");
        assert!(self.alibi.is_none_or(|alibi| alibi.slopes.len() == heads), "a slope per query head");
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == heads), "a sink per query head");
    }

    /// Whether scores are more than scaled products.
    pub(super) fn is_shaped(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some()
    }

    /// What is done to the scores of a query head at a position, as logarithms to `base`.
    #[inline(always)]
    pub(super) fn shaping(&self, head: usize, position: usize, base: Base) -> Shaping {
        let unit = base.unit();
        let bias = self.alibi.map(|Alibi { slopes, bfloat16 }| match bfloat16 {
            false => Bias::Distance { slope: slopes[head] * unit, position },
            true => Bias::Rounded { slope: to_bfloat16(slopes[head]), factor: self.scale * unit },
        });
        Shaping { softcap: self.softcap.map(|cap| cap * unit), bias }
    }

    /// The logit of a query head's sink, as a logarithm to `base`.
    #[inline(always)]
    pub(super) fn sink(&self, head: usize, base: Base) -> Option<f32> {
        self.sinks.map(|sinks| sinks[head] * base.unit())
    }
}

/// What is done to the scaled products of one query.
#[derive(Clone, Copy)]
pub(super) struct Shaping {
    softcap: Option<f32>,
    bias: Option<Bias>,
}

/// What is added for a key at a position p.
#[derive(Clone, Copy)]
enum Bias {
    /// slope · (p - position).
    Distance { slope: f32, position: usize },
    /// factor · bf16(slope · bf16(p)).
    Rounded { slope: f32, factor: f32 },
}

impl Shaping {
    /// Scores from the scaled products with sixteen keys, the first one at position `first`. Single operations that round
    /// once: every instruction set gives the same bits.
    #[inline(always)]
    pub(super) fn apply<L: Lanes>(&self, first: usize, products: L) -> L {
        let scores = match self.softcap {
            None => products,
            Some(cap) => tanh(products.div(L::splat(cap))).mul(L::splat(cap)),
        };
        let numbers = L::load(&NUMBERS);
        match self.bias {
            None => scores,
            Some(Bias::Distance { slope, position }) => {
                let ahead = numbers.add(L::splat((first as i64 - position as i64) as f32));
                scores.add(ahead.mul(L::splat(slope)))
            }
            Some(Bias::Rounded { slope, factor }) => {
                let mut bias = [0.0; LANES];
                numbers.add(L::splat(first as f32)).store(&mut bias);
                bias.iter_mut().for_each(|bias| *bias = to_bfloat16(slope * to_bfloat16(*bias)));
                scores.add(L::load(&bias).mul(L::splat(factor)))
            }
        }
    }
}

const NUMBERS: [f32; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The nearest number with 8 significant bits, ties to even, of a finite number. Without branches, so that loops over it
/// become vectors.
#[inline(always)]
fn to_bfloat16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
}

#[cfg(test)]
#[test]
fn rounding_to_bfloat16_is_that_of_half() {
    for high in 0..=0x7F7Fu32 {
        for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
            for sign in [0, 1 << 31] {
                let x = f32::from_bits(sign | high << 16 | low);
                assert_eq!(to_bfloat16(x).to_bits(), half::bf16::from_f32(x).to_f32().to_bits(), "{x:e}");
            }
        }
    }
}
