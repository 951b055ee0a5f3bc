//! Activations as the products read them: panels of a few rows, interleaved, quantized to int8 or left as f32.
//!
//! A panel of R rows keeps the R values (or words of 4 int8) of the same k side by side; only the panels of matrix
//! registers, 16 rows, keep 64 values of a row together. Which widths a batch is cut into never changes a result: every row
//! has its own sums.

use super::lanes::{Job, Lanes, Line, ROWS};
use crate::Pool;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Values per block, the least that a format's scale covers (or two of its scales).
pub(super) const BLOCK: usize = 32;

/// Blocks that share a scale of x, and whose products are summed as integers before they meet it.
///
/// Perplexity of mica-40m (48 windows of WikiText-2) against f32 activations, with one scale per 32, 64, 128 and 256 values:
/// Q8_0 +0.014, 0.032, 0.023, 0.043 %; Q4_K_M +0.012, 0.034, 0.059, 0.072 %. On one core with AMX, Q4_0 with 128 runs at
/// 1.6 TOPS, with 256 at 1.9, and with 32, where scales must be floats, at 0.9. 256 is too coarse for small models: the
/// divergence of mica-5m in Q8_0 was three times that with 32.
pub(super) const GROUP_BLOCKS: usize = 4;
pub(super) const GROUP: usize = GROUP_BLOCKS * BLOCK;

/// Rows `start .. start + width` of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panel {
    pub(super) start: usize,
    pub(super) width: usize,
}

/// Cuts `m` rows greedily into panels of the given widths (descending, ending in 1).
pub(super) fn cut_panels(m: usize, widths: &[usize], panels: &mut Vec<Panel>) {
    panels.clear();
    let mut start = 0;
    for &width in widths {
        while m - start >= width {
            panels.push(Panel { start, width });
            start += width;
        }
    }
}

/// How many panels pass over the same unpacked weights: as many as leave room for weights and sums in an L2 of 1 MiB,
/// with bounds that keep the unpacking cheap beside the products and the sums small. `row_bytes` is one row of x.
pub(super) fn panels_at_once(widest: usize, row_bytes: usize) -> usize {
    ((768 << 10) / (widest * row_bytes).max(1)).clamp(6, 64)
}

/// x `[m, cols]`, and the scale of its quants where that is fixed.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: &'a [f32],
    pub(super) m: usize,
    pub(super) cols: usize,
    pub(super) scale: Option<f32>,
}

/// Rows of x in int8: x[k] ≈ scale[group] · quant[k].
///
/// Numerics: scale = the fixed one, beyond whose 127 steps values are clamped, or max|x| / 127 over a group of 128 values (the last one may be shorter); quants are rounded to nearest, ties to even, and lie in
/// -127 ..= 127. A group whose largest magnitude is below 127 / f32::MAX becomes zero; one with a value that is not
/// finite gets a scale that is not a number, so the results show it.
#[derive(Default)]
pub(super) struct Quantized {
    pub(super) panels: Vec<Panel>,
    /// M; the last panel for matrix registers has room for more.
    pub(super) rows: usize,
    /// M, or more for matrix registers.
    stored: usize,
    /// Groups of a row.
    groups: usize,
    /// Groups that stand side by side, panel after panel, before the next groups of the first panel.
    chunk: usize,
    words: Vec<Line>,
    scales: Vec<f32>,
    sums: Vec<u32>,
    half_sums: Vec<u32>,
}

/// A panel of R quantized rows.
#[derive(Clone, Copy)]
pub(super) struct QuantizedPanel<'a, const R: usize> {
    /// Word w of block b of row r, values 4w .. 4w + 4: `words[b][w][r]`.
    pub(super) words: &'a [[[u32; R]; 8]],
    /// `scales[group][row]`.
    pub(super) scales: &'a [[f32; R]],
    /// Σ quants of a block as the high i16 of a word: `sums[block][row]`.
    pub(super) sums: &'a [[u32; R]],
    /// Σ quants of both halves of a block, two i16.
    pub(super) half_sums: &'a [[u32; R]],
}

impl Quantized {
    /// A panel, not one for matrix registers; R must be its width.
    #[inline(always)]
    pub(super) fn panel<const R: usize>(&self, panel: Panel) -> QuantizedPanel<'_, R> {
        let of = panel.start * self.groups..(panel.start + R) * self.groups;
        let blocks = of.start * GROUP_BLOCKS..of.end * GROUP_BLOCKS;
        let lines = &self.words[blocks.start / 2..blocks.end / 2];
        QuantizedPanel {
            words: bytemuck::cast_slice::<_, u32>(lines).as_chunks().0.as_chunks().0,
            scales: self.scales[of].as_chunks().0,
            sums: self.sums[blocks.clone()].as_chunks().0,
            half_sums: self.half_sums[blocks].as_chunks().0,
        }
    }

    /// Of consecutive panels for matrix registers, the chunk that begins with `group`: lines of 64 values, rows innermost, then
    /// the two halves of a group, groups, panels; and scales, in that order.
    #[inline(always)]
    pub(super) fn tile_order(&self, panels: &[Panel], group: usize) -> (&[Line], &[[f32; ROWS]]) {
        let groups = self.chunk.min(self.groups - group);
        let start = group * self.stored + panels.first().map_or(0, |panel| panel.start) * groups;
        let lines = &self.words[start * GROUP_BLOCKS / 2..];
        (lines, self.scales[start..].as_chunks().0)
    }

    /// Quantizes `input` in panels of `widths`, for passes over all groups of a row, or over `chunk` at a time.
    pub(super) fn fill<L: Lanes>(
        &mut self,
        l: L,
        pool: &Pool,
        input: Input<'_>,
        widths: &[usize],
        chunk: Option<usize>,
    ) {
        let Input { x, m, cols, .. } = input;
        let for_matrix = widths == [ROWS];
        self.stored = if for_matrix { m.next_multiple_of(ROWS) } else { m };
        cut_panels(self.stored, widths, &mut self.panels);
        self.rows = m;
        self.groups = cols.div_ceil(GROUP);
        self.chunk = chunk.unwrap_or(self.groups).max(1);
        let groups = self.stored * self.groups;
        self.words.resize(groups * GROUP_BLOCKS / 2, Line::ZERO);
        self.scales.resize(groups, 0.0);
        let sums = if for_matrix { 0 } else { groups * GROUP_BLOCKS };
        self.sums.resize(sums, 0);
        self.half_sums.resize(sums, 0);
        if x.is_empty() {
            return;
        }
        let words = bytemuck::cast_slice_mut(&mut self.words);
        let (sums, half_sums) = (&mut self.sums, &mut self.half_sums);
        let mut rest = Slots { words, scales: &mut self.scales, sums, half_sums };
        let chunks = (0..self.groups).step_by(self.chunk);
        let chunks = chunks.map(|start| start..self.groups.min(start + self.chunk));
        if m * cols < PARALLEL_FROM {
            // Decode comes here for every product, and must not allocate.
            for groups in chunks {
                l.enter(take_job(&mut rest, &self.panels, input, groups));
            }
            return;
        }
        let mut parts: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(Vec::new())).collect();
        for groups in chunks {
            for (worker, part) in parts.iter_mut().enumerate() {
                let panels = &self.panels[pool.share(worker, self.panels.len(), 1)];
                let part = part.get_mut().unwrap_or_else(PoisonError::into_inner);
                part.push(take_job(&mut rest, panels, input, groups.clone()));
            }
        }
        pool.run(&|worker| {
            for job in parts[worker].lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                l.enter(job);
            }
        });
    }
}

/// The job of some panels and groups, with the slots that come next.
fn take_job<'a>(rest: &mut Slots<'a>, panels: &'a [Panel], input: Input<'a>, groups: Range<usize>) -> Quantize<'a> {
    let rows: usize = panels.iter().map(|panel| panel.width).sum();
    let slots = rest.take(rows * groups.len());
    Quantize { panels, input, groups, slots }
}

/// Below this many values the caller converts them alone: a region costs about a microsecond, in which one core
/// quantizes some 4000 values.
const PARALLEL_FROM: usize = 1 << 14;

struct Slots<'a> {
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [u32],
    half_sums: &'a mut [u32],
}

impl<'a> Slots<'a> {
    /// Takes those of the first `groups` groups away.
    fn take(&mut self, groups: usize) -> Self {
        const ENOUGH: &str = "there are slots for every panel";
        Self {
            words: self.words.split_off_mut(..groups * GROUP_BLOCKS * 8).expect(ENOUGH),
            scales: self.scales.split_off_mut(..groups).expect(ENOUGH),
            // Panels for matrix registers have no sums.
            sums: self.sums.split_off_mut(..groups * GROUP_BLOCKS).unwrap_or_default(),
            half_sums: self.half_sums.split_off_mut(..groups * GROUP_BLOCKS).unwrap_or_default(),
        }
    }
}

/// Some groups of some panels, whose slots stand side by side.
struct Quantize<'a> {
    panels: &'a [Panel],
    input: Input<'a>,
    groups: Range<usize>,
    slots: Slots<'a>,
}

impl<L: Lanes> Job<L> for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let Self { panels, input: Input { x, cols, scale: fixed, .. }, groups, slots } = self;
        let of = groups.start * GROUP..cols.min(groups.end * GROUP);
        let Some(first) = panels.first() else { return };
        for &Panel { start, width } in panels {
            let base = (start - first.start) * groups.len();
            let rows = x[start * cols..].chunks_exact(cols);
            for (r, row) in rows.take(width).enumerate() {
                let blocks = row[of.clone()].as_chunks::<BLOCK>().0;
                for (group, values) in blocks.chunks(GROUP_BLOCKS).enumerate() {
                    let largest = f32::from_bits(l.max_magnitude(values));
                    let (scale, factor) = match fixed {
                        // A group of zeros needs no quants.
                        Some(scale) if largest.is_finite() && largest > 0.0 => (scale, 1.0 / scale),
                        _ => scale_of(largest),
                    };
                    slots.scales[base + group * width + r] = scale;
                    for i in 0..GROUP_BLOCKS {
                        let block = group * GROUP_BLOCKS + i;
                        let mut bytes = [0; BLOCK];
                        let sums = match values.get(i) {
                            Some(values) if factor != 0.0 && fixed.is_some() => {
                                let limit = 127.0 * scale;
                                l.quantize(&values.map(|value| value.clamp(-limit, limit)), factor, &mut bytes)
                            }
                            Some(values) if factor != 0.0 => l.quantize(values, factor, &mut bytes),
                            _ => [0; 2],
                        };
                        let bytes = bytes.as_chunks::<4>().0.iter();
                        let bytes = bytes.map(|bytes| u32::from_le_bytes(bytes.map(|byte| byte as u8)));
                        if width == ROWS {
                            let at = base * GROUP_BLOCKS * 8 + (block / 2 * ROWS + r) * ROWS + block % 2 * 8;
                            slots.words[at..at + 8].iter_mut().zip(bytes).for_each(|(word, bytes)| *word = bytes);
                        } else {
                            let at = base * GROUP_BLOCKS + block * width;
                            slots.sums[at + r] = ((sums[0] + sums[1]) as u32) << 16;
                            slots.half_sums[at + r] = sums[0] as u32 & 0xffff | (sums[1] as u32) << 16;
                            let words = &mut slots.words[8 * at..][..8 * width];
                            words[r..].iter_mut().step_by(width).zip(bytes).for_each(|(word, bytes)| *word = bytes);
                        }
                    }
                }
            }
        }
    }
}

/// (scale, 1 / scale) for the largest magnitude; a factor of 0 stands for "all quants are zero".
#[inline(always)]
pub(super) fn scale_of(max: f32) -> (f32, f32) {
    let factor = 127.0 / max;
    if !max.is_finite() {
        (f32::NAN, 0.0)
    } else if factor.is_finite() {
        (max / 127.0, factor)
    } else {
        (0.0, 0.0)
    }
}

/// Rows of x in f32, interleaved within panels.
#[derive(Default)]
pub(super) struct Floats {
    pub(super) panels: Vec<Panel>,
    cols: usize,
    values: Vec<f32>,
}

impl Floats {
    /// Values of a panel, `[k][row]`; R must be its width.
    #[inline(always)]
    pub(super) fn panel<const R: usize>(&self, panel: Panel, cols: Range<usize>) -> &[[f32; R]] {
        &self.values[panel.start * self.cols..(panel.start + R) * self.cols].as_chunks().0[cols]
    }

    /// Interleaves `x` [m, cols] in panels of `widths`.
    pub(super) fn fill(&mut self, pool: &Pool, x: &[f32], m: usize, cols: usize, widths: &[usize]) {
        cut_panels(m, widths, &mut self.panels);
        self.cols = cols;
        self.values.resize(m * cols, 0.0);
        if x.is_empty() {
            return;
        }
        if m * cols < PARALLEL_FROM {
            return interleave(&self.panels, x, cols, &mut self.values);
        }
        let mut parts = Vec::with_capacity(pool.threads());
        let mut rest = &mut self.values[..];
        for worker in 0..pool.threads() {
            let panels = &self.panels[pool.share(worker, self.panels.len(), 1)];
            let rows: usize = panels.iter().map(|panel| panel.width).sum();
            let (part, tail) = rest.split_at_mut(rows * cols);
            rest = tail;
            parts.push(Mutex::new((panels, part)));
        }
        pool.run(&|worker| {
            let mut part = parts[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let (panels, values) = &mut *part;
            interleave(panels, x, cols, values);
        });
    }
}

/// Writes consecutive panels; `values` holds just their rows.
fn interleave(panels: &[Panel], x: &[f32], cols: usize, values: &mut [f32]) {
    let mut rest = values;
    for panel in panels {
        let (values, tail) = rest.split_at_mut(panel.width * cols);
        rest = tail;
        let rows = &x[panel.start * cols..][..panel.width * cols];
        match panel.width {
            8 => interleave_rows::<8>(rows, cols, values),
            6 => interleave_rows::<6>(rows, cols, values),
            4 => interleave_rows::<4>(rows, cols, values),
            2 => interleave_rows::<2>(rows, cols, values),
            _ => values.copy_from_slice(rows),
        }
    }
}

/// values[k][r] = rows[r][k].
fn interleave_rows<const R: usize>(rows: &[f32], cols: usize, values: &mut [f32]) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &rows[r * cols..][..cols]);
    for (k, values) in values.as_chunks_mut::<R>().0.iter_mut().enumerate() {
        for (value, row) in values.iter_mut().zip(rows) {
            *value = row[k];
        }
    }
}
