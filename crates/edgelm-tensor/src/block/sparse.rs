//! What blocks of 2:4 sparse weights share: of every four values two are kept, in order, and a mask of four bits says which.
//!
//! Where a mask has fewer than two bits, the kept values without a place count for nothing; places beyond the second are 0.

use super::grid::ScaledLevels;
use super::symmetric::{Levels, search_f16};
use super::{Grid, weights};
use half::f16;

/// Bit i mod 4 of nibble i / 4: value i is kept.
type Masks = [u8; 4];

fn mask(masks: &Masks, four: usize) -> u8 {
    masks[four / 2] >> (4 * (four % 2)) & 15
}

/// For each of 32 values the place among the kept ones where it stands, if it is kept.
pub(super) fn places(masks: &Masks) -> [Option<usize>; 32] {
    std::array::from_fn(|i| {
        let (four, bit) = (i / 4, i % 4);
        let mask = mask(masks, four);
        let rank = (mask & ((1 << bit) - 1)).count_ones() as usize;
        (mask >> bit & 1 == 1 && rank < 2).then_some(2 * four + rank)
    })
}

/// Masks of two bits each that keep the two values of every four that `weight` is largest for, and of equal ones the first.
pub(super) fn best_masks(weight: impl Fn(usize) -> f32) -> Masks {
    let mut masks = [0; 4];
    for four in 0..8 {
        let mut order: [usize; 4] = [0, 1, 2, 3];
        order.sort_by(|&a, &b| weight(4 * four + b).total_cmp(&weight(4 * four + a)));
        masks[four / 2] |= (1 << order[0] | 1 << order[1]) << (4 * (four % 2));
    }
    masks
}

/// 32 values as the 16 that `masks` keep.
pub(super) fn compress<T: Copy + Default>(values: &[T], masks: &Masks) -> [T; 16] {
    let mut kept = [T::default(); 16];
    for (value, place) in values.iter().zip(places(masks)) {
        if let Some(place) = place {
            kept[place] = *value;
        }
    }
    kept
}

/// The inverse of `compress`.
pub(super) fn expand<T: Copy + Default>(kept: &[T; 16], masks: &Masks) -> [T; 32] {
    places(masks).map(|place| place.map_or_else(T::default, |place| kept[place]))
}

/// Levels of which only those of kept values can be other than zero.
pub struct SparseLevels<L> {
    levels: ScaledLevels<L, 1, 32>,
    places: [Option<usize>; 32],
    zero: u16,
}

impl<L: Levels> SparseLevels<L> {
    pub(super) fn new(levels: L, scale: f16, masks: &Masks) -> Self {
        let zero = u16::from(levels.code(0.0));
        Self { levels: ScaledLevels::new(levels, [scale.to_f32()]), places: places(masks), zero }
    }
}

impl<L: Levels> Grid for SparseLevels<L> {
    const STEP: usize = 1;

    fn choose(&self, at: usize, values: &[f32], weights: &[f32], codes: &mut [u16], decoded: &mut [f32]) {
        match self.places[at] {
            Some(_) => self.levels.choose(at, values, weights, codes, decoded),
            None => (codes[0], decoded[0]) = (self.zero, 0.0),
        }
    }
}

/// Scale, codes of 32 values and masks of the block with the least weighted error among those that keep the two values of
/// every four that count most.
pub(super) fn encode<L: Levels>(levels: L, values: &[f32], importance: Option<&[f32]>) -> (f16, [u16; 32], Masks) {
    let limit = L::HIGH * f16::MAX.to_f32_const();
    let Some((mut x, w)) = weights::prepare::<32>(values, importance, limit) else {
        return (f16::ZERO, [u16::from(levels.code(0.0)); 32], best_masks(|_| 0.0));
    };
    let masks = best_masks(|i| w[i] * x[i] * x[i]);
    for (x, place) in x.iter_mut().zip(places(&masks)) {
        if place.is_none() {
            *x = 0.0;
        }
    }
    let scale = search_f16(levels, &x, &w);
    (scale, super::grid::nearest(&SparseLevels::new(levels, scale, &masks), &x, &w), masks)
}
