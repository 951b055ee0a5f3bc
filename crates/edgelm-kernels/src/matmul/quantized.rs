//! Products over quantized weights.
//!
//! Two ways to the same sums. For few rows of x, each sub-block is unpacked into registers and used for all of them:
//! decode reads every weight once and does no more. For many rows, some groups of a tile are unpacked to a buffer
//! that stays in L1 and all rows pass over it. Both add the same integers within a group, exactly, and then the same floats
//! in the same order (`matrix.rs` does the same with matrix registers), so a row's result does not depend on which way was
//! taken.

use super::activations::{BLOCK, GROUP_BLOCKS, Panel, Quantized, QuantizedPanel, panels_at_once};
use super::format::{Format, Rule, Scales, Units, Words};
use super::lanes::{Job, Kind, Lanes, Line, ROWS};
use super::matrix;
use super::output::Out;
use super::pack::{Packed, half_lines};
use std::marker::PhantomData;
use std::ops::Range;

/// What the products of a group sum up to, for R rows of x and T tiles.
struct Totals<L: Lanes, const R: usize, const T: usize> {
    /// Σ scale · (quant − OFFSET) · quant of x.
    products: [[L::U; T]; R],
    /// Σ min · quant of x.
    mins: [[L::U; T]; R],
}

impl<L: Lanes, const R: usize, const T: usize> Totals<L, R, T> {
    #[inline(always)]
    fn zero(l: L) -> Self {
        Self { products: [[l.splat(0); T]; R], mins: [[l.splat(0); T]; R] }
    }

    /// Adds one sub-block. PAIRED: `q` went through [`Lanes::pair_words`].
    ///
    /// Numerics: exact. A rule's products are below 2^15 · 127 each, of which a group has 128.
    #[inline(always)]
    fn add<Q: Rule, const PAIRED: bool>(
        &mut self,
        l: L,
        q: &[[L::U; 8]; T],
        scales: &[Scales<L::U>; T],
        x: &QuantizedPanel<'_, R>,
        block: usize,
    ) {
        let offset = Q::OFFSET + if matches!(Q::KIND, Kind::Signed) { L::SIGNED_OFFSET } else { 0 };
        let (words, sums) = (&x.words[block], &x.sums[block]);
        if Q::PER_16 {
            for half in 0..2 {
                let mut start = [0; R];
                for r in 0..R {
                    start[r] = -offset * i32::from(sums[r][half]);
                }
                let mut q_half = [[l.splat(0); 4]; T];
                for t in 0..T {
                    q_half[t].copy_from_slice(&q[t][4 * half..4 * half + 4]);
                }
                let mut x_half = [[0; R]; 4];
                x_half.copy_from_slice(&words[4 * half..4 * half + 4]);
                let dots = dot::<L, PAIRED, R, T, 4>(l, Q::KIND, start, &q_half, &x_half);
                self.add_dots(l, &dots, scales, half);
            }
        } else {
            let mut start = [0; R];
            for r in 0..R {
                start[r] = -offset * (i32::from(sums[r][0]) + i32::from(sums[r][1]));
            }
            let dots = dot::<L, PAIRED, R, T, 8>(l, Q::KIND, start, q, words);
            self.add_dots(l, &dots, scales, 0);
        }
        if Q::MINS {
            for r in 0..R {
                for t in 0..T {
                    self.mins[r][t] = l.dot_pairs(self.mins[r][t], scales[t].mins, sums[r]);
                }
            }
        }
    }

    #[inline(always)]
    fn add_dots(&mut self, l: L, dots: &[[L::U; T]; R], scales: &[Scales<L::U>; T], half: usize) {
        for r in 0..R {
            for t in 0..T {
                self.products[r][t] = l.mul_add(dots[r][t], scales[t].scale[half], self.products[r][t]);
            }
        }
    }

    /// acc[r][t] += scale of x · (unit · products − min_unit · mins).
    #[inline(always)]
    fn flush<Q: Rule>(&self, l: L, units: &[[L::F; 2]; T], x_scales: &[f32; R], acc: &mut [[L::F; T]; R]) {
        for r in 0..R {
            for t in 0..T {
                acc[r][t] =
                    add_group::<L, Q>(l, self.products[r][t], self.mins[r][t], units[t], x_scales[r], acc[r][t]);
            }
        }
    }
}

/// acc + x_scale · (unit · products − min_unit · mins), with a rounding after each of its operations but the fused ones.
#[inline(always)]
pub(super) fn add_group<L: Lanes, Q: Rule>(
    l: L,
    products: L::U,
    mins: L::U,
    units: [L::F; 2],
    x_scale: f32,
    acc: L::F,
) -> L::F {
    let mut sum = l.mul(l.to_f32(products), units[0]);
    if Q::MINS {
        sum = l.fnma(l.to_f32(mins), units[1], sum);
    }
    l.fma(sum, l.splat_f32(x_scale), acc)
}

#[inline(always)]
fn dot<L: Lanes, const PAIRED: bool, const R: usize, const T: usize, const W: usize>(
    l: L,
    kind: Kind,
    start: [i32; R],
    q: &[[L::U; W]; T],
    x: &[[u32; R]; W],
) -> [[L::U; T]; R] {
    if PAIRED { l.dot_paired(kind, start, q, x) } else { l.dot(kind, start, q, x) }
}

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

/// Packed blocks of one tile.
struct Blocks<'a, F: Format> {
    words: &'a [F::Words],
    halves: &'a [[u16; ROWS]],
}

/// The part of a tile that shares a scale of x: blocks of 32 values, or half a block of 256.
struct Group<'a, F: Format> {
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
    fn part(&self, blocks: Range<usize>) -> Group<'a, F> {
        let halves = if F::HALF_AT.is_some() { &self.halves[blocks.clone()] } else { &[] };
        Group { words: &self.words[blocks], halves }
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

    /// The blocks of a group.
    #[inline(always)]
    fn group(&self, group: usize) -> Group<'a, F> {
        if F::SUBS == 1 {
            let start = group * GROUP_BLOCKS;
            self.part(start..self.words.len().min(start + GROUP_BLOCKS))
        } else {
            let block = group * GROUP_BLOCKS / F::SUBS;
            self.part(block..block + 1)
        }
    }
}

impl<F: Format> Blocks<'_, F> {
    /// Unpacks a group and returns its units.
    #[inline(always)]
    fn unpack<L: Lanes>(&self, l: L, group: usize, to: &mut impl Take<L>) -> [L::F; 2] {
        let part = self.group(group);
        let units = F::units(l, part.words, part.halves);
        if F::SUBS == 1 || (group * GROUP_BLOCKS).is_multiple_of(F::SUBS) {
            part.each::<L, 0>(l, &units, to);
        } else {
            part.each::<L, GROUP_BLOCKS>(l, &units, to);
        }
        [units.unit, units.min_unit]
    }
}

/// Lines of the units of a group.
#[inline(always)]
pub(super) const fn unit_lines<Q: Rule>() -> usize {
    if Q::MINS { 2 } else { 1 }
}

#[inline(always)]
pub(super) fn store_units<L: Lanes, Q: Rule>(l: L, units: [L::F; 2], lines: &mut [Line]) {
    for index in 0..unit_lines::<Q>() {
        l.store(l.as_bits(units[index]), &mut lines[index]);
    }
}

/// Without mins, both are the unit of the scales.
#[inline(always)]
pub(super) fn load_units<L: Lanes, Q: Rule>(l: L, lines: &[Line]) -> [L::F; 2] {
    [l.as_floats(l.load(&lines[0])), l.as_floats(l.load(&lines[unit_lines::<Q>() - 1]))]
}

/// Takes the sub-blocks of a group, counted from 0. Not a closure: those are not inlined for certain, and what is not
/// inlined is compiled for any CPU.
pub(super) trait Take<L: Lanes> {
    /// Must be `#[inline(always)]`.
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>);
}

impl<F: Format> Group<'_, F> {
    /// Unpacks every sub-block. For blocks of 256 values `FIRST` is the first sub-block of the half, a constant: most
    /// formats keep their parts at shifts that depend on it, and with known shifts unpacking takes a third fewer
    /// instructions.
    #[inline(always)]
    fn each<L: Lanes, const FIRST: usize>(&self, l: L, units: &Units<L::F>, to: &mut impl Take<L>) {
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

    #[inline(always)]
    fn one<L: Lanes, const FIRST: usize>(&self, l: L, units: &Units<L::F>, index: usize, to: &mut impl Take<L>) {
        let (words, sub) = (&self.words[0], FIRST + index);
        to.take(l, index, F::quants(l, words, sub), F::scales(l, words, self.half(0), units, sub));
    }

    #[inline(always)]
    fn half(&self, block: usize) -> &[u16; ROWS] {
        if F::HALF_AT.is_some() { &self.halves[block] } else { &[0; ROWS] }
    }
}

/// Few rows: panels of 4, 2 or 1.
pub(super) struct FewRows<'a, F>(pub(super) Tiles<'a, F>);

/// Panel widths that [`FewRows`] has code for.
pub(super) const FEW_PANELS: &[usize] = &[4, 2, 1];

impl<L: Lanes, F: Format> Job<L> for FewRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        for tile in self.0.tiles.clone() {
            for &panel in &self.0.x.panels {
                match panel.width {
                    4 => self.panel::<L, 4>(l, tile, panel),
                    2 => self.panel::<L, 2>(l, tile, panel),
                    _ => self.panel::<L, 1>(l, tile, panel),
                }
            }
        }
    }
}

impl<F: Format> FewRows<'_, F> {
    #[inline(always)]
    fn panel<L: Lanes, const R: usize>(&self, l: L, tile: usize, panel: Panel) {
        let Tiles { weights, blocks: count, x, out, .. } = &self.0;
        let blocks = Blocks::<F>::of(weights.tile(tile), *count);
        let x = x.panel::<R>(panel, 0);
        let mut acc = [[l.splat_f32(0.0)]; R];
        if F::SUBS == 1 {
            for group in 0..count.div_ceil(GROUP_BLOCKS) {
                let part = blocks.group(group);
                let units = F::units(l, part.words, part.halves);
                add::<L, F, R, 0>(l, &part, &units, &x, group, &mut acc);
            }
        } else {
            for block in 0..*count {
                let part = blocks.part(block..block + 1);
                let units = F::units(l, part.words, part.halves);
                add::<L, F, R, 0>(l, &part, &units, &x, 2 * block, &mut acc);
                add::<L, F, R, 4>(l, &part, &units, &x, 2 * block + 1, &mut acc);
            }
        }
        for r in 0..R {
            let mut lanes = [0.0; ROWS];
            l.store_f32(acc[r][0], &mut lanes);
            // SAFETY: this worker owns the tile.
            unsafe { out.put(l, panel.start + r, tile, &lanes) };
        }
    }
}

/// Unpacks one group and adds its products.
#[inline(always)]
fn add<L: Lanes, F: Format, const R: usize, const FIRST: usize>(
    l: L,
    part: &Group<'_, F>,
    units: &Units<L::F>,
    x: &QuantizedPanel<'_, R>,
    group: usize,
    acc: &mut [[L::F; 1]; R],
) {
    let mut products = Products::<L, F, R, FIRST> { totals: Totals::zero(l), x, group, words: part.words };
    part.each::<L, FIRST>(l, units, &mut products);
    products.totals.flush::<F::Rule>(l, &[[units.unit, units.min_unit]], &x.scales[group], acc);
}

/// Multiplies sub-blocks as they come.
struct Products<'a, L: Lanes, F: Format, const R: usize, const FIRST: usize> {
    totals: Totals<L, R, 1>,
    x: &'a QuantizedPanel<'a, R>,
    group: usize,
    words: &'a [F::Words],
}

impl<L: Lanes, F: Format, const R: usize, const FIRST: usize> Take<L> for Products<'_, L, F, R, FIRST> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        // A few lines at a time: a burst would occupy all line-fill buffers, and loads that only miss L1 wait for one too.
        let ahead = self.words.as_ptr().cast::<Line>().wrapping_byte_add(PREFETCH_BYTES);
        let sub = FIRST + index;
        for line in sub * F::Words::COUNT / F::SUBS..(sub + 1) * F::Words::COUNT / F::SUBS {
            l.prefetch(ahead.wrapping_add(line));
        }
        self.totals.add::<F::Rule, false>(l, &[q], &[scales], self.x, self.group * GROUP_BLOCKS + index);
    }
}

/// How far ahead of the products decode asks for weights. TinyLlama's shape in Q4_0 on two cores with AVX-512: 31 tokens/s
/// without, 39 with 4 KiB into the first-level cache, 42.7, 43.4 and 40.6 with 4, 8 and 16 KiB into the second; 46 against 38
/// when asked for sub-block by sub-block and not for eight of them at once.
pub(crate) const PREFETCH_BYTES: usize = 8192;

/// Buffers of one worker for [`ManyRows`].
#[derive(Default)]
pub(super) struct Unpacked {
    lines: Vec<Line>,
    sums: Vec<Line>,
    ring: matrix::Ring,
}

/// Many rows: any panel width of [`Lanes::INT_PANELS`].
pub(super) struct ManyRows<'a, F> {
    pub(super) tiles: Tiles<'a, F>,
    pub(super) buffer: &'a mut Unpacked,
}

/// Groups unpacked at once: two tiles of 20 KB in all, or one of twice 8 KB for matrix registers, which leaves room for
/// activations in a 32 KB L1.
pub(super) const GROUPS_AT_ONCE: usize = 4;

/// Bytes of sums that are added to before the next groups are unpacked: they and the activations of these groups, which all
/// their tiles pass over, stay in an L2 of 1 MiB.
const SUM_BYTES: usize = 256 << 10;

impl<L: Lanes, F: Format> Job<L> for ManyRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let Self { tiles, buffer } = self;
        if L::MATRIX {
            l.matrix_begin();
            for panels in tiles.x.panels.chunks(PANELS_AT_ONCE) {
                tiles.matrix::<L>(l, panels, buffer);
            }
            l.matrix_end();
        } else {
            // Scales and sums add three bytes to every eight quants.
            let at_once = panels_at_once(L::INT_PANELS[0], tiles.blocks * F::SUBS * BLOCK * 11 / 8);
            for panels in tiles.x.panels.chunks(at_once) {
                if L::TWO_TILES {
                    tiles.strips::<L, 2>(l, panels, buffer);
                } else {
                    tiles.strips::<L, 1>(l, panels, buffer);
                }
            }
        }
    }
}

/// Panels of 16 rows that pass over the same planes.
const PANELS_AT_ONCE: usize = 32;

/// Lines of an unpacked sub-block: quants, scales, mins.
#[inline(always)]
fn sub_lines<Q: Rule>() -> usize {
    8 + if Q::PER_16 { 2 } else { 1 } + if Q::MINS { 1 } else { 0 }
}

/// Lines of an unpacked group: its sub-blocks and its units.
#[inline(always)]
fn group_lines<Q: Rule>() -> usize {
    GROUP_BLOCKS * sub_lines::<Q>() + unit_lines::<Q>()
}

impl<F: Format> Tiles<'_, F> {
    /// Groups of a row.
    #[inline(always)]
    fn groups(&self) -> usize {
        (self.blocks * F::SUBS).div_ceil(GROUP_BLOCKS)
    }

    /// Unpacks strips of T tiles, a few groups at a time, and multiplies each with all panels.
    #[inline(always)]
    fn strips<L: Lanes, const T: usize>(&self, l: L, panels: &[Panel], buffer: &mut Unpacked) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
        let rows = first.start..last.start + last.width;
        let lines = group_lines::<F::Rule>();
        buffer.lines.resize(GROUPS_AT_ONCE * T * lines, Line::ZERO);
        for strip in self.tiles.clone().step_by(T) {
            buffer.sums.clear();
            buffer.sums.resize(rows.len() * T, Line::ZERO);
            for start in (0..self.groups()).step_by(GROUPS_AT_ONCE) {
                let chunk = start..self.groups().min(start + GROUPS_AT_ONCE);
                for t in 0..T {
                    // A last odd tile keeps itself company; its twin is not written out.
                    let tile = (strip + t).min(self.tiles.end - 1);
                    let blocks = Blocks::<F>::of(self.weights.tile(tile), self.blocks);
                    for (group, out) in chunk.clone().zip(buffer.lines[t * lines..].chunks_mut(T * lines)) {
                        unpack::<L, F>(l, &blocks, group, &mut out[..lines]);
                    }
                }
                let unpacked = &buffer.lines[..chunk.len() * T * lines];
                for &panel in panels {
                    let sums = &mut buffer.sums[(panel.start - rows.start) * T..][..panel.width * T];
                    let sums = sums.as_chunks_mut().0;
                    // Constant conditions keep the compiler from making code for widths that a family never uses.
                    match panel.width {
                        6 if L::INT_PANELS[0] >= 6 => {
                            multiply::<L, F::Rule, 6, T>(l, unpacked, self.x.panel(panel, 0), start, sums)
                        }
                        4 => multiply::<L, F::Rule, 4, T>(l, unpacked, self.x.panel(panel, 0), start, sums),
                        2 => multiply::<L, F::Rule, 2, T>(l, unpacked, self.x.panel(panel, 0), start, sums),
                        _ => multiply::<L, F::Rule, 1, T>(l, unpacked, self.x.panel(panel, 0), start, sums),
                    }
                }
            }
            for (row, sums) in rows.clone().zip(buffer.sums.as_chunks::<T>().0) {
                for (tile, lanes) in (strip..self.tiles.end).zip(sums) {
                    // SAFETY: this worker owns the tiles.
                    unsafe { self.out.put(l, row, tile, bytemuck::cast_ref(&lanes.0)) };
                }
            }
        }
    }

    /// The same with matrix registers: one tile at a time, but some tiles before the next groups.
    #[inline(always)]
    fn matrix<L: Lanes>(&self, l: L, panels: &[Panel], buffer: &mut Unpacked) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
        let rows = first.start..last.start + last.width;
        let lines = matrix::group_lines::<F::Rule>();
        buffer.lines.resize(GROUPS_AT_ONCE * lines, Line::ZERO);
        let at_once = (SUM_BYTES / (rows.len() * size_of::<Line>())).max(1);
        for first_tile in self.tiles.clone().step_by(at_once) {
            let tiles = first_tile..self.tiles.end.min(first_tile + at_once);
            buffer.sums.clear();
            buffer.sums.resize(rows.len() * tiles.len(), Line::ZERO);
            for start in (0..self.groups()).step_by(GROUPS_AT_ONCE) {
                let chunk = start..self.groups().min(start + GROUPS_AT_ONCE);
                for (tile, sums) in tiles.clone().zip(buffer.sums.chunks_mut(rows.len())) {
                    let blocks = Blocks::<F>::of(self.weights.tile(tile), self.blocks);
                    for (group, out) in chunk.clone().zip(buffer.lines.chunks_mut(lines)) {
                        let mut planes = matrix::Planes::<F::Rule>::new(out);
                        let units = blocks.unpack(l, group, &mut planes);
                        store_units::<L, F::Rule>(l, units, planes.units());
                    }
                    // What is unpacked next comes from memory while this is multiplied.
                    let next = if tile + 1 < tiles.end { (tile + 1, start) } else { (tiles.start, chunk.end) };
                    let next_blocks = Blocks::<F>::of(self.weights.tile(next.0), self.blocks);
                    for group in next.1..self.groups().min(next.1 + GROUPS_AT_ONCE) {
                        next_blocks.prefetch(l, group);
                    }
                    let unpacked = &buffer.lines[..chunk.len() * lines];
                    for (&panel, sums) in panels.iter().zip(sums.as_chunks_mut().0) {
                        let x = self.x.panel(panel, start);
                        matrix::multiply::<L, F::Rule>(l, unpacked, x, sums, &mut buffer.ring);
                    }
                }
            }
            for row in rows.start..rows.end.min(self.x.rows) {
                let sums = buffer.sums[row - rows.start..].iter().step_by(rows.len());
                for (tile, lanes) in tiles.clone().zip(sums) {
                    // SAFETY: this worker owns the tiles.
                    unsafe { self.out.put(l, row, tile, bytemuck::cast_ref(&lanes.0)) };
                }
            }
        }
    }
}

/// Writes a group of a tile as a record; what the last group of a row lacks becomes zero.
#[inline(always)]
fn unpack<L: Lanes, F: Format>(l: L, blocks: &Blocks<'_, F>, group: usize, out: &mut [Line]) {
    let (subs, units) = out.split_at_mut(GROUP_BLOCKS * sub_lines::<F::Rule>());
    if blocks.group(group).words.len() * F::SUBS < GROUP_BLOCKS {
        subs.fill(Line::ZERO);
    }
    let stored = blocks.unpack(l, group, &mut Records::<F::Rule> { subs, rule: PhantomData });
    store_units::<L, F::Rule>(l, stored, units);
}

/// Writes sub-blocks as they come.
struct Records<'a, Q> {
    subs: &'a mut [Line],
    rule: PhantomData<Q>,
}

impl<L: Lanes, Q: Rule> Take<L> for Records<'_, Q> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        let lines = &mut self.subs[index * sub_lines::<Q>()..][..sub_lines::<Q>()];
        let q = l.pair_words(q);
        for j in 0..8 {
            l.store(q[j], &mut lines[j]);
        }
        l.store(scales.scale[0], &mut lines[8]);
        if Q::PER_16 {
            l.store(scales.scale[1], &mut lines[9]);
        }
        if Q::MINS {
            l.store(scales.mins, &mut lines[if Q::PER_16 { 10 } else { 9 }]);
        }
    }
}

/// Adds the products of R rows with the unpacked groups of T tiles to `sums[row][tile]`.
#[inline(always)]
fn multiply<L: Lanes, Q: Rule, const R: usize, const T: usize>(
    l: L,
    unpacked: &[Line],
    x: QuantizedPanel<'_, R>,
    first_group: usize,
    sums: &mut [[Line; T]],
) {
    let lines = group_lines::<Q>();
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
            let zero = l.splat(0);
            let mut q = [[zero; 8]; T];
            let mut scales = [Scales { scale: [zero; 2], mins: zero }; T];
            for t in 0..T {
                let lines = &records[t * lines + sub * sub_lines::<Q>()..][..sub_lines::<Q>()];
                for j in 0..8 {
                    q[t][j] = l.load(&lines[j]);
                }
                scales[t].scale[0] = l.load(&lines[8]);
                if Q::PER_16 {
                    scales[t].scale[1] = l.load(&lines[9]);
                }
                if Q::MINS {
                    scales[t].mins = l.load(&lines[if Q::PER_16 { 10 } else { 9 }]);
                }
            }
            totals.add::<Q, true>(l, &q, &scales, &x, group * GROUP_BLOCKS + sub);
        }
        let mut units = [[l.splat_f32(0.0); 2]; T];
        for t in 0..T {
            units[t] = load_units::<L, Q>(l, &records[t * lines + GROUP_BLOCKS * sub_lines::<Q>()..]);
        }
        totals.flush::<Q>(l, &units, &x.scales[group], &mut acc);
    }
    for r in 0..R {
        for t in 0..T {
            l.store(l.as_bits(acc[r][t]), &mut sums[r][t]);
        }
    }
}
