//! Products over quantized weights.
//!
//! Two ways to the same sums. For few rows of x, each sub-block is unpacked into registers and used for all of them:
//! decode reads every weight once and does no more. For many rows, some groups of a tile are unpacked to a buffer
//! that stays in L1 and all rows pass over it, with vectors or with matrix registers. All add the same integers within a
//! group, exactly, and then the same floats in the same order, so a row's result does not depend on which way was taken.
//!
//! What is compiled as one piece is kept small (see [`Lanes::enter`]): one panel width of one format.

mod few_rows;
mod many_rows;
mod matrix;
mod sums;

pub(crate) use few_rows::PREFETCH_BYTES;
pub(super) use few_rows::few_rows;
pub(super) use many_rows::{GROUPS_AT_ONCE, Unpacked, many_rows};

use super::activations::{GROUP_BLOCKS, Quantized};
use super::format::{Format, Scales, Units, Words};
use super::lanes::{Lanes, Line, ROWS};
use super::output::Out;
use super::pack::{Packed, half_lines};
use std::marker::PhantomData;
use std::ops::Range;

/// Some tiles of one matrix, to be multiplied with all rows of x.
pub(super) struct Tiles<'a, F> {
    pub(super) weights: &'a Packed,
    /// Blocks per row.
    pub(super) blocks: usize,
    pub(super) tiles: Range<usize>,
    pub(super) x: &'a Quantized,
    pub(super) out: &'a Out<'a>,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Tiles<'_, F> {
    /// Groups of a row.
    fn groups(&self) -> usize {
        (self.blocks * F::SUBS).div_ceil(GROUP_BLOCKS)
    }

    /// The blocks of a tile.
    fn of(&self, tile: usize) -> Blocks<'_, F> {
        Blocks::of(self.weights.tile(tile), self.blocks)
    }
}

/// Packed blocks of a tile: all of them, or those that share a scale of x, four of 32 values or one of 256, of which a group is
/// one half.
struct Blocks<'a, F: Format> {
    words: &'a [F::Words],
    halves: &'a [[u16; ROWS]],
}

impl<'a, F: Format> Blocks<'a, F> {
    #[inline(always)]
    fn of(lines: &'a [Line], blocks: usize) -> Self {
        let (halves, words) = lines.split_at(half_lines::<F>(blocks));
        Self { words: F::Words::cut(words), halves: bytemuck::cast_slice(halves) }
    }

    #[inline(always)]
    fn part(&self, blocks: Range<usize>) -> Self {
        let halves = if F::HALF_AT.is_some() { &self.halves[blocks.clone()] } else { &[] };
        Self { words: &self.words[blocks], halves }
    }

    /// Asks for a group to come into the cache.
    #[inline(always)]
    fn prefetch<L: Lanes>(&self, l: L, group: usize) {
        let part = self.group(group);
        for words in part.words {
            for line in words.lines() {
                l.prefetch(line);
            }
        }
        for half in part.halves.iter().step_by(2) {
            l.prefetch(std::ptr::from_ref(half).cast());
        }
    }

    /// Asks for what lies [`PREFETCH_BYTES`] after a group.
    #[inline(always)]
    fn prefetch_after<L: Lanes>(&self, l: L, group: usize) {
        let part = self.group(group);
        let lines = part.words.len() * F::Words::COUNT;
        // A group is all of its blocks, or one half of a block of 256 values.
        let lines = if F::SUBS == 1 { 0..lines } else { group % 2 * lines / 2..(group % 2 + 1) * lines / 2 };
        let ahead = part.words.as_ptr().wrapping_byte_add(PREFETCH_BYTES).cast::<Line>();
        for line in lines {
            l.prefetch(ahead.wrapping_add(line));
        }
    }

    /// The blocks of a group.
    #[inline(always)]
    fn group(&self, group: usize) -> Self {
        if F::SUBS == 1 {
            let start = group * GROUP_BLOCKS;
            self.part(start..self.words.len().min(start + GROUP_BLOCKS))
        } else {
            let block = group * GROUP_BLOCKS / F::SUBS;
            self.part(block..block + 1)
        }
    }

    /// Unpacks a group and returns its unit.
    #[inline(always)]
    fn unpack<L: Lanes>(&self, l: L, group: usize, to: &mut impl Take<L>) -> L::F {
        let part = self.group(group);
        let units = F::units(l, part.words, part.halves);
        if F::SUBS == 1 || (group * GROUP_BLOCKS).is_multiple_of(F::SUBS) {
            part.each::<L, 0>(l, &units, to);
        } else {
            part.each::<L, GROUP_BLOCKS>(l, &units, to);
        }
        units.unit
    }

    /// Unpacks every sub-block of a group. For blocks of 256 values `FIRST` is the first sub-block of the half, a constant: most
    /// formats keep their parts at shifts that depend on it, and with known shifts unpacking takes a third fewer
    /// instructions.
    #[inline(always)]
    fn each<L: Lanes, const FIRST: usize>(&self, l: L, units: &Units<L>, to: &mut impl Take<L>) {
        if F::SUBS == 1 {
            for (index, words) in self.words.iter().enumerate() {
                to.take(l, index, F::quants(l, words, 0), F::scales(l, words, self.half(index), units, 0));
            }
        } else {
            self.one::<L, FIRST>(l, units, 0, to);
            self.one::<L, FIRST>(l, units, 1, to);
            self.one::<L, FIRST>(l, units, 2, to);
            self.one::<L, FIRST>(l, units, 3, to);
        }
    }

    /// Development builds for Arm call it: its four copies in each kernel are most of what the compiler has to do there (over 10
    /// minutes of processor time for a copy of the crate, 6 so). NEON is part of Arm's baseline, so a call is only slower;
    /// x86 needs everything inlined where its instructions are enabled.
    #[cfg_attr(all(target_arch = "aarch64", debug_assertions), inline(never))]
    #[cfg_attr(not(all(target_arch = "aarch64", debug_assertions)), inline(always))]
    fn one<L: Lanes, const FIRST: usize>(&self, l: L, units: &Units<L>, index: usize, to: &mut impl Take<L>) {
        let (words, sub) = (&self.words[0], FIRST + index);
        to.take(l, index, F::quants(l, words, sub), F::scales(l, words, self.half(0), units, sub));
    }

    #[inline(always)]
    fn half(&self, block: usize) -> &[u16; ROWS] {
        if F::HALF_AT.is_some() { &self.halves[block] } else { &[0; ROWS] }
    }
}

/// Takes the sub-blocks of a group, counted from 0. Not a closure: those are not inlined for certain, and what is not
/// inlined is compiled for any CPU.
trait Take<L: Lanes> {
    /// Must be `#[inline(always)]`.
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>);
}
