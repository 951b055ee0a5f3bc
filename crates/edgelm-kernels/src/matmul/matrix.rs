//! Products of many rows through matrix registers: the sums of `quantized.rs`, bit for bit, sixteen rows of x and a tile of
//! weights at a time.
//!
//! A register sums what shares a scale, so scales go into the weights: scale · (quant − OFFSET) has 16 bits, and its high
//! and low bytes are two planes of int8 weights with which the sums of a whole group are exact integers,
//! 256 · high + low. They leave by way of memory. So the sums of one group are computed while those of the group before are
//! written and those of the one before that are added to f32 sums, which stay in vector registers.
//!
//! What bounds it (one core of a 4.1 GHz Xeon with AMX; 32 tiles, 512 rows, K = 2048): two planes halve the 7.5 TOPS of one
//! `tdpbssd` after another; 3.1 with loads from L1 and L2, 2.2 with stores or with vector code beside them, 1.6 with both.

use super::activations::{GROUP_BLOCKS, QuantizedPanel};
use super::format::{Rule, Scales};
use super::lanes::{Lanes, Line, ROWS};
use super::quantized::{Take, add_group, load_units, unit_lines};
use std::marker::PhantomData;

/// The last sums, as they come out of matrix registers, high and low: `[group mod 2][plane][row of x]`.
pub(super) struct Ring([[[Line; ROWS]; 2]; 2]);

impl Default for Ring {
    fn default() -> Self {
        Self([[[Line::ZERO; ROWS]; 2]; 2])
    }
}

/// Lines of both planes of a group: 16 high ones of two sub-blocks, 16 low ones, then the same of the other two.
const PLANE_LINES: usize = 2 * 8 * GROUP_BLOCKS;

/// Lines of an unpacked group: planes, mins, units.
#[inline(always)]
pub(super) fn group_lines<Q: Rule>() -> usize {
    PLANE_LINES + min_lines::<Q>() + unit_lines::<Q>()
}

/// Mins of both halves of a sub-block in a word, or where these are the same of two sub-blocks.
#[inline(always)]
const fn min_lines<Q: Rule>() -> usize {
    match (Q::MINS, Q::PER_16) {
        (false, _) => 0,
        (true, true) => GROUP_BLOCKS,
        (true, false) => GROUP_BLOCKS / 2,
    }
}

/// A group that is being unpacked.
pub(super) struct Planes<'a, Q> {
    lines: &'a mut [Line],
    rule: PhantomData<Q>,
}

impl<'a, Q: Rule> Planes<'a, Q> {
    /// What the last group of a row lacks keeps what was there: x is zero for it.
    pub(super) fn new(lines: &'a mut [Line]) -> Self {
        Self { lines, rule: PhantomData }
    }

    /// Where the units stand.
    #[inline(always)]
    pub(super) fn units(&mut self) -> &mut [Line] {
        &mut self.lines[PLANE_LINES + min_lines::<Q>()..]
    }
}

impl<L: Lanes, Q: Rule> Take<L> for Planes<'_, Q> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        let first = index / 2 * 2 * ROWS + index % 2 * 8;
        let scale = [l.pair(scales.scale[0], scales.scale[0]), l.pair(scales.scale[1], scales.scale[1])];
        for j in 0..8 {
            let [high, low] = l.matrix_planes(Q::KIND, Q::OFFSET, q[j], scale[if Q::PER_16 { j / 4 } else { 0 }]);
            l.store(high, &mut self.lines[first + j]);
            l.store(low, &mut self.lines[first + ROWS + j]);
        }
        if Q::MINS && Q::PER_16 {
            l.store(scales.mins, &mut self.lines[PLANE_LINES + index]);
        } else if Q::MINS {
            let line = &mut self.lines[PLANE_LINES + index / 2];
            let before = if index.is_multiple_of(2) { scales.mins } else { l.load(line) };
            l.store(l.pair(before, scales.mins), line);
        }
    }
}

/// Adds the products of 16 rows with unpacked groups of a tile, which are the chunk of x, to `sums[row]`.
#[inline(always)]
pub(super) fn multiply<L: Lanes, Q: Rule>(
    l: L,
    unpacked: &[Line],
    x: QuantizedPanel<'_, ROWS>,
    sums: &mut [Line; ROWS],
    ring: &mut Ring,
) {
    const STEPS: usize = GROUP_BLOCKS / 2;
    const { assert!(STEPS == 2, "each step writes one plane and adds half of the rows") };
    let count = unpacked.len() / group_lines::<Q>();
    let lines = |index: usize| &unpacked[index * group_lines::<Q>()..][..group_lines::<Q>()];
    let x_lines = &x.lines[..count * STEPS * ROWS];
    let mut acc = [l.splat_f32(0.0); ROWS];
    for r in 0..ROWS {
        acc[r] = l.as_floats(l.load(&sums[r]));
    }
    for index in 0..count + 2 {
        for step in 0..STEPS {
            if index < count {
                let x = x_lines[(index * STEPS + step) * ROWS..][..ROWS].as_ptr();
                let planes = lines(index)[step * 2 * ROWS..][..2 * ROWS].as_ptr();
                // SAFETY: `ManyRows` has begun; the slices have the lines that are read.
                unsafe { l.matrix_step(index, step, x, planes) };
            }
            if index >= 1 && index <= count {
                // SAFETY: begun; these sums are the last but one that were started, or the last.
                unsafe { l.matrix_store(index - 1, step, &mut ring.0[(index - 1) % 2][step]) };
            }
            if index >= 2 {
                let (index, sums) = (index - 2, &ring.0[index % 2]);
                if step == 0 {
                    add::<L, Q, 0>(l, sums, lines(index), index, &x, &mut acc);
                } else {
                    add::<L, Q, 8>(l, sums, lines(index), index, &x, &mut acc);
                }
            }
        }
    }
    for r in 0..ROWS {
        l.store(l.as_bits(acc[r]), &mut sums[r]);
    }
}

/// Adds eight rows, from `FIRST` on, of one group's sums.
#[inline(always)]
fn add<L: Lanes, Q: Rule, const FIRST: usize>(
    l: L,
    sums: &[[Line; ROWS]; 2],
    lines: &[Line],
    group: usize,
    x: &QuantizedPanel<'_, ROWS>,
    acc: &mut [L::F; ROWS],
) {
    let units = load_units::<L, Q>(l, &lines[PLANE_LINES + min_lines::<Q>()..]);
    let x_sums = if Q::PER_16 { x.sums } else { x.pair_sums };
    for r in FIRST..FIRST + 8 {
        let products = l.add_high(l.load(&sums[0][r]), l.load(&sums[1][r]));
        let mut mins = l.splat(0);
        for pair in 0..min_lines::<Q>() {
            mins = l.dot_pairs(mins, l.load(&lines[PLANE_LINES + pair]), x_sums[group * min_lines::<Q>() + pair][r]);
        }
        acc[r] = add_group::<L, Q>(l, products, mins, units, x.scales[group][r], acc[r]);
    }
}
