//! Products over quantized weights.
//!
//! Two ways to the same sums. For few rows of x, each sub-block is unpacked into registers and used for all of them:
//! decode reads every weight once and does no more. For many rows, some sub-blocks of a tile are unpacked to a buffer
//! that stays in L1 and all rows pass over it. Both hand the same quants and scales to `accumulate`, in the same order
//! (`matrix.rs` does the same with matrix registers), so a row's result does not depend on which way was taken.

use super::activations::{BLOCK, Panel, Quantized, QuantizedPanel, panels_at_once};
use super::format::{Format, Rule, Scales, Words};
use super::lanes::{Job, Kind, Lanes, Line, ROWS};
use super::matrix;
use super::output::Out;
use super::pack::{Packed, half_lines};
use std::marker::PhantomData;
use std::ops::Range;

/// acc[r][t] += Σ over one sub-block, for R rows of x and T tiles. PAIRED: `q` went through [`Lanes::pair_words`].
///
/// Numerics: the dot product is an exact integer. It enters the sum as fma(dot, scale_w · scale_x, acc), then the min
/// as fma(−min, scale_x · Σ quants of x, acc).
#[inline(always)]
fn accumulate<L: Lanes, Q: Rule, const PAIRED: bool, const R: usize, const T: usize>(
    l: L,
    q: &[[L::U; 8]; T],
    scales: &[Scales<L::F>; T],
    x: &QuantizedPanel<'_, R>,
    block: usize,
    acc: &mut [[L::F; T]; R],
) {
    let offset = Q::OFFSET + if matches!(Q::KIND, Kind::Signed) { L::SIGNED_OFFSET } else { 0 };
    let (words, x_scales, sums) = (&x.words[block], &x.scales[block], &x.sums[block]);
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
            for r in 0..R {
                let x_scale = l.splat_f32(x_scales[r]);
                let x_sum = l.splat_f32(x_scales[r] * f32::from(sums[r][half]));
                for t in 0..T {
                    let scale = l.mul(scales[t].scale[half], x_scale);
                    acc[r][t] = l.fma(l.to_f32(dots[r][t]), scale, acc[r][t]);
                    if Q::MINS {
                        acc[r][t] = l.fnma(scales[t].min[half], x_sum, acc[r][t]);
                    }
                }
            }
        }
    } else {
        let mut start = [0; R];
        for r in 0..R {
            start[r] = -offset * (i32::from(sums[r][0]) + i32::from(sums[r][1]));
        }
        let dots = dot::<L, PAIRED, R, T, 8>(l, Q::KIND, start, q, words);
        let x_sums = &x.scaled_sums[block];
        for r in 0..R {
            let x_scale = l.splat_f32(x_scales[r]);
            let x_sum = l.splat_f32(x_sums[r]);
            for t in 0..T {
                let scale = l.mul(scales[t].scale[0], x_scale);
                acc[r][t] = l.fma(l.to_f32(dots[r][t]), scale, acc[r][t]);
                if Q::MINS {
                    acc[r][t] = l.fnma(scales[t].min[0], x_sum, acc[r][t]);
                }
            }
        }
    }
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

impl<'a, F: Format> Blocks<'a, F> {
    #[inline(always)]
    fn of(lines: &'a [Line], blocks: usize) -> Self {
        let (halves, words) = lines.split_at(half_lines::<F>(blocks));
        Self { words: F::Words::cut(words), halves: bytemuck::cast_slice(halves) }
    }

    #[inline(always)]
    fn get(&self, block: usize) -> (&'a F::Words, &'a [u16; ROWS]) {
        let half = if F::HALF_AT.is_some() { &self.halves[block] } else { &[0; ROWS] };
        (&self.words[block], half)
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
        let x = x.panel::<R>(panel);
        let mut acc = [[l.splat_f32(0.0)]; R];
        for block in 0..*count {
            let (words, half) = blocks.get(block);
            if R == 1 {
                for line in words.lines() {
                    l.prefetch(std::ptr::from_ref(line).wrapping_byte_add(PREFETCH_BYTES));
                }
            }
            let header = F::header(l, words, half);
            // Four by hand: most formats keep their parts at shifts that repeat after two or four sub-blocks, and with
            // known shifts unpacking takes a third fewer instructions.
            for first in (0..F::SUBS).step_by(4) {
                for_sub::<L, F, R>(l, words, header, first, block, &x, &mut acc);
                if F::SUBS > 1 {
                    for_sub::<L, F, R>(l, words, header, first + 1, block, &x, &mut acc);
                    for_sub::<L, F, R>(l, words, header, first + 2, block, &x, &mut acc);
                    for_sub::<L, F, R>(l, words, header, first + 3, block, &x, &mut acc);
                }
            }
        }
        for r in 0..R {
            let mut lanes = [0.0; ROWS];
            l.store_f32(acc[r][0], &mut lanes);
            // SAFETY: this worker owns the tile.
            unsafe { out.put(panel.start + r, tile, &lanes) };
        }
    }
}

/// Unpacks one sub-block of a block and adds its products.
#[inline(always)]
fn for_sub<L: Lanes, F: Format, const R: usize>(
    l: L,
    words: &F::Words,
    header: [L::F; 2],
    sub: usize,
    block: usize,
    x: &QuantizedPanel<'_, R>,
    acc: &mut [[L::F; 1]; R],
) {
    let q = [F::quants(l, words, sub)];
    let scales = [F::scales(l, words, header, sub)];
    accumulate::<L, F::Rule, false, R, 1>(l, &q, &scales, x, block * F::SUBS + sub, acc);
}

/// How far ahead of the products decode asks for weights.
const PREFETCH_BYTES: usize = 4096;

/// Buffers of one worker for [`ManyRows`].
#[derive(Default)]
pub(super) struct Unpacked {
    lines: Vec<Line>,
    sums: Vec<[f32; ROWS]>,
    ring: matrix::Ring,
}

/// Many rows: any panel width of [`Lanes::INT_PANELS`].
pub(super) struct ManyRows<'a, F> {
    pub(super) tiles: Tiles<'a, F>,
    pub(super) buffer: &'a mut Unpacked,
}

/// Sub-blocks unpacked at once: with two tiles about 20 KB, which leaves room for activations in a 32 KB L1.
const SUBS_AT_ONCE: usize = 16;

impl<L: Lanes, F: Format> Job<L> for ManyRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        // Scales and sums add three bytes to every eight quants.
        let at_once = panels_at_once(L::INT_PANELS[0], self.tiles.blocks * F::SUBS * BLOCK * 11 / 8);
        if L::MATRIX {
            l.matrix_begin(matrix::k_bytes::<F::Rule>());
        }
        for panels in self.tiles.x.panels.chunks(at_once) {
            if L::TWO_TILES {
                self.tiles.strips::<L, 2>(l, panels, self.buffer);
            } else {
                self.tiles.strips::<L, 1>(l, panels, self.buffer);
            }
        }
        if L::MATRIX {
            l.matrix_end();
        }
    }
}

/// Lines of an unpacked sub-block: quants, scales, mins.
#[inline(always)]
pub(super) fn record_lines<Q: Rule>() -> usize {
    let scales = if Q::PER_16 { 2 } else { 1 };
    8 + if Q::MINS { 2 * scales } else { scales }
}

impl<F: Format> Tiles<'_, F> {
    /// Unpacks strips of T tiles, a few sub-blocks at a time, and multiplies each with all panels.
    #[inline(always)]
    fn strips<L: Lanes, const T: usize>(&self, l: L, panels: &[Panel], buffer: &mut Unpacked) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
        let rows = first.start..last.start + last.width;
        let record = record_lines::<F::Rule>();
        buffer.lines.resize(SUBS_AT_ONCE * T * record, Line::ZERO);
        let per_chunk = SUBS_AT_ONCE / F::SUBS;
        for strip in self.tiles.clone().step_by(T) {
            buffer.sums.clear();
            buffer.sums.resize(rows.len() * T, [0.0; ROWS]);
            for start in (0..self.blocks).step_by(per_chunk) {
                let chunk = start..self.blocks.min(start + per_chunk);
                for t in 0..T {
                    // A last odd tile keeps itself company; its twin is not written out.
                    let tile = (strip + t).min(self.tiles.end - 1);
                    self.unpack::<L>(l, tile, chunk.clone(), &mut buffer.lines[t * record..], T * record);
                }
                let unpacked = &buffer.lines[..chunk.len() * F::SUBS * T * record];
                let first_sub = start * F::SUBS;
                for &panel in panels {
                    let sums = &mut buffer.sums[(panel.start - rows.start) * T..][..panel.width * T];
                    let sums = sums.as_chunks_mut().0;
                    // Constant conditions keep the compiler from making code for widths that a family never uses.
                    if L::MATRIX {
                        let x = self.x.panel(panel);
                        matrix::multiply::<L, F::Rule, T>(l, unpacked, x, first_sub, sums, &mut buffer.ring);
                    } else {
                        match panel.width {
                            6 if L::INT_PANELS[0] >= 6 => {
                                multiply::<L, F::Rule, 6, T>(l, unpacked, self.x.panel(panel), first_sub, sums)
                            }
                            4 => multiply::<L, F::Rule, 4, T>(l, unpacked, self.x.panel(panel), first_sub, sums),
                            2 => multiply::<L, F::Rule, 2, T>(l, unpacked, self.x.panel(panel), first_sub, sums),
                            _ => multiply::<L, F::Rule, 1, T>(l, unpacked, self.x.panel(panel), first_sub, sums),
                        }
                    }
                }
            }
            for (row, sums) in (rows.start..rows.end.min(self.x.rows)).zip(buffer.sums.as_chunks::<T>().0) {
                for (tile, lanes) in (strip..self.tiles.end).zip(sums) {
                    // SAFETY: this worker owns the tiles.
                    unsafe { self.out.put(row, tile, lanes) };
                }
            }
        }
    }

    /// Writes the sub-blocks of some blocks of a tile as records, `stride` lines apart.
    #[inline(always)]
    fn unpack<L: Lanes>(&self, l: L, tile: usize, chunk: Range<usize>, out: &mut [Line], stride: usize) {
        let blocks = Blocks::<F>::of(self.weights.tile(tile), self.blocks);
        let mut records = out.chunks_mut(stride);
        for block in chunk {
            let (words, half) = blocks.get(block);
            let header = F::header(l, words, half);
            for sub in 0..F::SUBS {
                let Some(record) = records.next() else { return };
                let q = l.pair_words(F::quants(l, words, sub));
                for (vector, line) in q.into_iter().zip(&mut *record) {
                    l.store(l.matrix_quants(F::Rule::KIND, F::Rule::OFFSET, vector), line);
                }
                let scales = F::scales(l, words, header, sub);
                let each = if F::Rule::PER_16 { 2 } else { 1 };
                for i in 0..each {
                    l.store_f32(scales.scale[i], bytemuck::cast_mut(&mut record[8 + i].0));
                    if F::Rule::MINS {
                        l.store_f32(scales.min[i], bytemuck::cast_mut(&mut record[8 + each + i].0));
                    }
                }
            }
        }
    }
}

/// Adds the products of R rows with the unpacked sub-blocks of T tiles to `sums[row][tile]`.
#[inline(always)]
fn multiply<L: Lanes, Q: Rule, const R: usize, const T: usize>(
    l: L,
    unpacked: &[Line],
    x: QuantizedPanel<'_, R>,
    first_sub: usize,
    sums: &mut [[[f32; ROWS]; T]],
) {
    let record = record_lines::<Q>();
    let each = if Q::PER_16 { 2 } else { 1 };
    let mut acc = [[l.splat_f32(0.0); T]; R];
    for r in 0..R {
        for t in 0..T {
            acc[r][t] = l.load_f32(&sums[r][t]);
        }
    }
    for (index, records) in unpacked.chunks_exact(T * record).enumerate() {
        let zero = l.splat_f32(0.0);
        let mut q = [[l.splat(0); 8]; T];
        let mut scales = [Scales { scale: [zero; 2], min: [zero; 2] }; T];
        for t in 0..T {
            let lines = &records[t * record..][..record];
            for j in 0..8 {
                q[t][j] = l.load(&lines[j]);
            }
            for i in 0..each {
                scales[t].scale[i] = l.load_f32(bytemuck::cast_ref(&lines[8 + i].0));
                if Q::MINS {
                    scales[t].min[i] = l.load_f32(bytemuck::cast_ref(&lines[8 + each + i].0));
                }
            }
        }
        accumulate::<L, Q, true, R, T>(l, &q, &scales, &x, first_sub + index, &mut acc);
    }
    for r in 0..R {
        for t in 0..T {
            l.store_f32(acc[r][t], &mut sums[r][t]);
        }
    }
}
