//! Products of many rows through matrix registers: the sums of `sums.rs`, bit for bit, sixteen rows of x and a tile of
//! weights at a time.
//!
//! A register sums what shares a scale, so scales go into the weights: scale · (quant − OFFSET) + min has 16 bits, and its
//! high and low bytes are two planes of int8 weights with which the sums of a whole group are exact integers,
//! 256 · high + low. They leave by way of memory. So the sums of one group are computed while those of the group before are
//! written and those of the one before that are added to f32 sums, which stay in vector registers.
//!
//! What bounds it (one core of a 4.1 GHz Xeon with AMX; 32 tiles, 512 rows, K = 2048): two planes halve the 7.5 TOPS of one
//! `tdpbssd` after another; 3.1 with loads from L1 and L2, 2.2 with stores or with vector code beside them, 1.6 with both.

use super::many_rows::{GROUPS_AT_ONCE, Unpacked};
use super::sums::add_group;
use super::{Blocks, Take, Tiles};
use crate::matmul::activations::{GROUP_BLOCKS, Panel, Quantized};
use crate::matmul::format::{Format, Rule, Scales};
use crate::matmul::lanes::{Job, Lanes, Line, ROWS};
use crate::matmul::output::PutRows;
use std::marker::PhantomData;
use std::ops::Range;

/// The last sums, as they come out of matrix registers, high and low: `[group mod 2][plane][row of x]`.
pub(super) struct Ring([[[Line; ROWS]; 2]; 2]);

impl Default for Ring {
    fn default() -> Self {
        Self([[[Line::ZERO; ROWS]; 2]; 2])
    }
}

/// Lines of both planes of a group: 16 high ones of two sub-blocks, 16 low ones, then the same of the other two.
const PLANE_LINES: usize = 2 * 8 * GROUP_BLOCKS;

/// Lines of an unpacked group: planes and unit.
const GROUP_LINES: usize = PLANE_LINES + 1;

/// Panels of 16 rows that pass over the same planes.
const PANELS_AT_ONCE: usize = 32;

/// Bytes of sums that are added to before the next groups are unpacked: they and the activations of these groups, which all
/// their tiles pass over, stay in an L2 of 1 MiB.
const SUM_BYTES: usize = 256 << 10;

/// Multiplies tiles with all rows of x: one tile at a time, but some tiles before the next groups.
pub(super) fn many_rows<L: Lanes, F: Format>(l: L, tiles: &Tiles<'_, F>, buffer: &mut Unpacked) {
    l.matrix_begin();
    for panels in tiles.x.panels.chunks(PANELS_AT_ONCE) {
        strips(l, tiles, panels, buffer);
    }
    l.matrix_end();
}

fn strips<L: Lanes, F: Format>(l: L, tiles: &Tiles<'_, F>, panels: &[Panel], buffer: &mut Unpacked) {
    let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
    let rows = first.start..last.start + last.width;
    buffer.lines.resize(GROUPS_AT_ONCE * GROUP_LINES, Line::ZERO);
    let at_once = (SUM_BYTES / (rows.len() * size_of::<Line>())).max(1);
    for first_tile in tiles.tiles.clone().step_by(at_once) {
        let strip = first_tile..tiles.tiles.end.min(first_tile + at_once);
        buffer.sums.resize(rows.len() * strip.len(), Line::ZERO);
        if tiles.groups() == 0 {
            buffer.sums.fill(Line::ZERO);
        }
        for start in (0..tiles.groups()).step_by(GROUPS_AT_ONCE) {
            let groups = start..tiles.groups().min(start + GROUPS_AT_ONCE);
            for (tile, sums) in strip.clone().zip(buffer.sums.chunks_mut(rows.len())) {
                let next = if tile + 1 < strip.end { (tile + 1, start) } else { (strip.start, groups.end) };
                let next = (tiles.of(next.0), next.1..tiles.groups().min(next.1 + GROUPS_AT_ONCE));
                let unpacked = &mut buffer.lines[..groups.len() * GROUP_LINES];
                l.enter(Unpack { blocks: tiles.of(tile), groups: groups.clone(), out: unpacked, next });
                l.enter(Multiply { unpacked, x: tiles.x, panels, start, sums, ring: &mut buffer.ring });
            }
        }
        // Some tiles at once, because a row of the result is far from the next: a line of each at a time, straight from the
        // kernel, takes half as long again for 5632 columns.
        // SAFETY: this worker owns the tiles.
        let out = unsafe { tiles.out.tiles(strip) };
        l.enter(PutRows { out, rows: rows.clone(), lines: &buffer.sums, strides: [1, rows.len()] });
    }
}

/// Writes groups of a tile as planes. What the last group of a row lacks keeps what was there: x is zero for it.
struct Unpack<'a, F: Format> {
    blocks: Blocks<'a, F>,
    groups: Range<usize>,
    out: &'a mut [Line],
    /// What is unpacked next comes from memory while this is multiplied.
    next: (Blocks<'a, F>, Range<usize>),
}

impl<L: Lanes, F: Format> Job<L> for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        for (group, out) in self.groups.zip(self.out.as_chunks_mut::<GROUP_LINES>().0) {
            let (planes, unit) = out.split_at_mut(PLANE_LINES);
            let value = self.blocks.unpack(l, group, &mut Planes::<F::Rule> { lines: planes, rule: PhantomData });
            l.store(l.as_bits(value), &mut unit[0]);
        }
        for group in self.next.1 {
            self.next.0.prefetch(l, group);
        }
    }
}

/// A group that is being unpacked.
struct Planes<'a, Q> {
    lines: &'a mut [Line],
    rule: PhantomData<Q>,
}

impl<L: Lanes, Q: Rule> Take<L> for Planes<'_, Q> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        let first = index / 2 * 2 * ROWS + index % 2 * 8;
        let mut halves = [[l.splat(0); 2]; 2];
        for half in 0..if Q::PER_16 { 2 } else { 1 } {
            let scale = scales.scale[half];
            let min = if Q::PER_16 && half == 0 { scales.mins } else { l.shr(scales.mins, 16) };
            halves[half] = [l.pair(scale, scale), if Q::MINS { l.pair(min, min) } else { l.splat(0) }];
        }
        for j in 0..8 {
            let [scale, min] = halves[if Q::PER_16 { j / 4 } else { 0 }];
            let [high, low] = l.matrix_planes(Q::KIND, Q::OFFSET, q[j], scale, min);
            l.store(high, &mut self.lines[first + j]);
            l.store(low, &mut self.lines[first + ROWS + j]);
        }
    }
}

/// Adds the products of panels of 16 rows with unpacked groups of a tile, which are the chunk of x.
struct Multiply<'a> {
    unpacked: &'a [Line],
    x: &'a Quantized,
    panels: &'a [Panel],
    /// The first of these groups. With group 0 sums begin.
    start: usize,
    /// `sums[row]` of the groups before, and of all so far.
    sums: &'a mut [Line],
    ring: &'a mut Ring,
}

impl<L: Lanes> Job<L> for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let Self { unpacked, x, panels, start, sums, ring } = self;
        let groups = unpacked.as_chunks::<GROUP_LINES>().0;
        let (x_lines, x_scales) = x.tile_order(panels, start);
        // Groups of the first panel, then of the next.
        let count = panels.len() * groups.len();
        let x_lines = &x_lines[..count * STEPS * ROWS];
        let mut acc = [l.splat_f32(0.0); ROWS];
        // Which group comes next to be computed, and which group of which panel to be added.
        let (mut next, mut group, mut panel) = (0, 0, 0);
        for index in 0..count + 2 {
            for step in 0..STEPS {
                if index < count {
                    let x = x_lines[(index * STEPS + step) * ROWS..][..ROWS].as_ptr();
                    let planes = groups[next][step * 2 * ROWS..][..2 * ROWS].as_ptr();
                    // SAFETY: `many_rows` has begun; the slices have the lines that are read.
                    unsafe { l.matrix_step(index, step, x, planes) };
                }
                if index >= 1 && index <= count {
                    // SAFETY: begun; these sums are the last but one that were started, or the last.
                    unsafe { l.matrix_store(index - 1, step, &mut ring.0[(index - 1) % 2][step]) };
                }
                if index < 2 {
                    continue;
                }
                let (index, products) = (index - 2, &ring.0[index % 2]);
                let sums = &mut sums.as_chunks_mut::<ROWS>().0[panel];
                // Half of the rows in each step.
                let rows = step * ROWS / STEPS..(step + 1) * ROWS / STEPS;
                if group == 0 {
                    for r in rows.clone() {
                        acc[r] = if start == 0 { l.splat_f32(0.0) } else { l.as_floats(l.load(&sums[r])) };
                    }
                }
                let unit = l.as_floats(l.load(&groups[group][PLANE_LINES]));
                for r in rows.clone() {
                    let total = l.add_high(l.load(&products[0][r]), l.load(&products[1][r]));
                    acc[r] = add_group(l, total, unit, x_scales[index][r], acc[r]);
                }
                if group + 1 == groups.len() {
                    for r in rows {
                        l.store(l.as_bits(acc[r]), &mut sums[r]);
                    }
                }
            }
            next = if next + 1 < groups.len() { next + 1 } else { 0 };
            if index >= 2 {
                group += 1;
                if group == groups.len() {
                    (group, panel) = (0, panel + 1);
                }
            }
        }
    }
}

/// Steps of 64 values in a group, each of which writes one plane.
const STEPS: usize = GROUP_BLOCKS / 2;
const _: () = assert!(STEPS == 2);
