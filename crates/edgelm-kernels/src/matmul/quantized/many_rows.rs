//! Many rows of x, with vectors: groups of a tile, or two, are unpacked to a buffer that panels of any width of
//! [`Lanes::INT_PANELS`] pass over.

use super::sums::{Totals, has_mins, with_offset};
use super::{Blocks, Take, Tiles, matrix};
use crate::matmul::activations::{BLOCK, GROUP_BLOCKS, Panel, QuantizedPanel, panels_at_once};
use crate::matmul::format::{Format, Rule, Scales};
use crate::matmul::lanes::{Job, Lanes, Line};
use crate::matmul::output::PutRows;
use std::marker::PhantomData;
use std::ops::Range;

/// Buffers of one worker.
#[derive(Default)]
pub(in crate::matmul) struct Unpacked {
    pub(super) lines: Vec<Line>,
    pub(super) sums: Vec<Line>,
    pub(super) ring: matrix::Ring,
}

/// Groups unpacked at once: two tiles of 20 KB in all, or one of twice 8 KB for matrix registers, which leaves room for
/// activations in a 32 KB L1.
pub(in crate::matmul) const GROUPS_AT_ONCE: usize = 4;

/// Multiplies tiles with all rows of x.
pub(in crate::matmul) fn many_rows<L: Lanes, F: Format>(l: L, tiles: &Tiles<'_, F>, buffer: &mut Unpacked) {
    if const { L::MATRIX } {
        matrix::many_rows(l, tiles, buffer);
    } else {
        // Scales and sums add three bytes to every eight quants.
        let at_once = panels_at_once(L::INT_PANELS[0], tiles.blocks * F::SUBS * BLOCK * 11 / 8);
        for panels in tiles.x.panels.chunks(at_once) {
            if const { L::TWO_TILES } {
                strips::<L, F, 2>(l, tiles, panels, buffer);
            } else {
                strips::<L, F, 1>(l, tiles, panels, buffer);
            }
        }
    }
}

/// Unpacks strips of T tiles, a few groups at a time, and multiplies each with all panels.
fn strips<L: Lanes, F: Format, const T: usize>(l: L, tiles: &Tiles<'_, F>, panels: &[Panel], buffer: &mut Unpacked) {
    let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
    let rows = first.start..last.start + last.width;
    let lines = group_lines::<L, F::Rule>();
    buffer.lines.resize(GROUPS_AT_ONCE * T * lines, Line::ZERO);
    for strip in tiles.tiles.clone().step_by(T) {
        buffer.sums.clear();
        buffer.sums.resize(rows.len() * T, Line::ZERO);
        for start in (0..tiles.groups()).step_by(GROUPS_AT_ONCE) {
            let groups = start..tiles.groups().min(start + GROUPS_AT_ONCE);
            for t in 0..T {
                // A last odd tile keeps itself company; its twin is not written out.
                let tile = (strip + t).min(tiles.tiles.end - 1);
                let out = &mut buffer.lines[t * lines..];
                l.enter(Unpack { blocks: tiles.of(tile), groups: groups.clone(), stride: T * lines, out });
            }
            let unpacked = &buffer.lines[..groups.len() * T * lines];
            for &panel in panels {
                let sums = &mut buffer.sums[(panel.start - rows.start) * T..][..panel.width * T];
                let sums = sums.as_chunks_mut().0;
                // Constant conditions keep the compiler from making code for widths that a family never uses.
                match panel.width {
                    6 if const { L::INT_PANELS[0] >= 6 } => {
                        l.enter(Multiply::<F::Rule, 6, T>::new(unpacked, tiles.x.panel(panel), start, sums));
                    }
                    4 if const { L::INT_PANELS[0] >= 4 } => {
                        l.enter(Multiply::<F::Rule, 4, T>::new(unpacked, tiles.x.panel(panel), start, sums));
                    }
                    2 if const { L::INT_PANELS[0] >= 2 } => {
                        l.enter(Multiply::<F::Rule, 2, T>::new(unpacked, tiles.x.panel(panel), start, sums));
                    }
                    _ => l.enter(Multiply::<F::Rule, 1, T>::new(unpacked, tiles.x.panel(panel), start, sums)),
                }
            }
        }
        // SAFETY: this worker owns the tiles.
        let out = unsafe { tiles.out.tiles(strip..tiles.tiles.end.min(strip + T)) };
        l.enter(PutRows { out, rows: rows.clone(), lines: &buffer.sums, strides: [T, 1] });
    }
}

/// Lines of an unpacked sub-block: quants, scales, mins.
#[inline(always)]
fn sub_lines<L: Lanes, Q: Rule>() -> usize {
    8 + if Q::PER_16 { 2 } else { 1 } + if has_mins::<L, Q>() { 1 } else { 0 }
}

/// Lines of an unpacked group: its sub-blocks and its unit.
#[inline(always)]
fn group_lines<L: Lanes, Q: Rule>() -> usize {
    GROUP_BLOCKS * sub_lines::<L, Q>() + 1
}

/// Writes groups of a tile as records, `stride` lines apart; what the last group of a row lacks becomes zero.
struct Unpack<'a, F: Format> {
    blocks: Blocks<'a, F>,
    groups: Range<usize>,
    stride: usize,
    out: &'a mut [Line],
}

impl<L: Lanes, F: Format> Job<L> for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        for (group, out) in self.groups.zip(self.out.chunks_mut(self.stride)) {
            self.blocks.prefetch_after(l, group);
            let (subs, rest) = out.split_at_mut(GROUP_BLOCKS * sub_lines::<L, F::Rule>());
            if self.blocks.group(group).words.len() * F::SUBS < GROUP_BLOCKS {
                subs.fill(Line::ZERO);
            }
            let unit = self.blocks.unpack(l, group, &mut Records::<F::Rule> { subs, rule: PhantomData });
            l.store(l.as_bits(unit), &mut rest[0]);
        }
    }
}

/// Writes sub-blocks as they come.
struct Records<'a, Q> {
    subs: &'a mut [Line],
    rule: PhantomData<Q>,
}

impl<L: Lanes, Q: Rule> Take<L> for Records<'_, Q> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        let lines = &mut self.subs[index * sub_lines::<L, Q>()..][..sub_lines::<L, Q>()];
        let (q, scales) = (l.pair_words(q), with_offset::<L, Q>(l, scales));
        for j in 0..8 {
            l.store(q[j], &mut lines[j]);
        }
        l.store(l.ready_scale(scales.scale[0]), &mut lines[8]);
        if Q::PER_16 {
            l.store(l.ready_scale(scales.scale[1]), &mut lines[9]);
        }
        if has_mins::<L, Q>() {
            l.store(scales.mins, &mut lines[if Q::PER_16 { 10 } else { 9 }]);
        }
    }
}

/// Adds the products of R rows with the unpacked groups of T tiles to `sums[row][tile]`.
struct Multiply<'a, Q, const R: usize, const T: usize> {
    unpacked: &'a [Line],
    x: QuantizedPanel<'a, R>,
    first_group: usize,
    sums: &'a mut [[Line; T]],
    rule: PhantomData<Q>,
}

impl<'a, Q, const R: usize, const T: usize> Multiply<'a, Q, R, T> {
    fn new(unpacked: &'a [Line], x: QuantizedPanel<'a, R>, first_group: usize, sums: &'a mut [[Line; T]]) -> Self {
        Self { unpacked, x, first_group, sums, rule: PhantomData }
    }
}

impl<L: Lanes, Q: Rule, const R: usize, const T: usize> Job<L> for Multiply<'_, Q, R, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let Self { unpacked, x, first_group, sums, .. } = self;
        let lines = group_lines::<L, Q>();
        let mut acc = [[l.splat_f32(0.0); T]; R];
        for r in 0..R {
            for t in 0..T {
                acc[r][t] = l.as_floats(l.load(&sums[r][t]));
            }
        }
        for (index, records) in unpacked.chunks_exact(T * lines).enumerate() {
            let group = first_group + index;
            let mut totals = Totals::<L, R, T>::zero(l);
            for sub in 0..GROUP_BLOCKS {
                let mut stored = [&records[..0]; T];
                for t in 0..T {
                    stored[t] = &records[t * lines + sub * sub_lines::<L, Q>()..][..sub_lines::<L, Q>()];
                }
                totals.add_stored::<Q>(l, stored, &x, group * GROUP_BLOCKS + sub);
            }
            let mut units = [l.splat_f32(0.0); T];
            for t in 0..T {
                units[t] = l.as_floats(l.load(&records[t * lines + GROUP_BLOCKS * sub_lines::<L, Q>()]));
            }
            totals.flush(l, &units, &x.scales[group], &mut acc);
        }
        for r in 0..R {
            for t in 0..T {
                l.store(l.as_bits(acc[r][t]), &mut sums[r][t]);
            }
        }
    }
}
