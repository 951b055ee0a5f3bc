//! Products over f32, f16 and bf16 weights, in f32.
//!
//! out[m, n] = Σ_k fma(w[n, k], x[m, k]), in the order of k, whatever the number of rows: cutting K into chunks keeps
//! the running sums in memory in between and changes nothing.

use super::activations::{Floats, Panel, panels_at_once};
use super::lanes::{Job, Lanes, Line, ROWS};
use super::output::{Out, PutRows};
use super::pack::TileLines;
use std::marker::PhantomData;
use std::ops::Range;

/// How a float weight is stored.
pub(super) trait Element {
    /// The values of 16 rows for one k.
    type Lanes: bytemuck::Pod;
    fn load<L: Lanes>(l: L, values: &Self::Lanes) -> L::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Element for F32 {
    type Lanes = [f32; ROWS];
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[f32; ROWS]) -> L::F {
        l.load_f32(values)
    }
}

impl Element for F16 {
    type Lanes = [u16; ROWS];
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[u16; ROWS]) -> L::F {
        l.load_f16(values)
    }
}

impl Element for Bf16 {
    type Lanes = [u16; ROWS];
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[u16; ROWS]) -> L::F {
        l.load_bf16(values)
    }
}

/// Some tiles of one matrix, to be multiplied with all rows of x.
pub(super) struct Tiles<'a, E> {
    pub(super) weights: TileLines<'a>,
    /// K.
    pub(super) cols: usize,
    pub(super) tiles: Range<usize>,
    pub(super) x: &'a Floats,
    pub(super) out: &'a Out<'a>,
    pub(super) element: PhantomData<E>,
}

impl<E: Element> Tiles<'_, E> {
    /// T consecutive tiles; those beyond the range repeat the last one.
    #[inline(always)]
    fn strip<const T: usize>(&self, first: usize) -> [&[E::Lanes]; T] {
        let mut strip: [&[E::Lanes]; T] = [&[]; T];
        for (t, values) in strip.iter_mut().enumerate() {
            let lines: &[Line] = self.weights.tile((first + t).min(self.tiles.end - 1));
            *values = &bytemuck::cast_slice(lines)[..self.cols];
        }
        strip
    }
}

/// acc[r][t] = fma(w[t][k], x[k][r], acc[r][t]) for every k of `x`.
#[inline(always)]
fn multiply<L: Lanes, E: Element, const R: usize, const T: usize>(
    l: L,
    w: [&[E::Lanes]; T],
    x: &[[f32; R]],
    acc: &mut [[L::F; T]; R],
) {
    let w = w.map(|values| &values[..x.len()]);
    for (k, x) in x.iter().enumerate() {
        let mut w_k = [l.splat_f32(0.0); T];
        for t in 0..T {
            w_k[t] = E::load(l, &w[t][k]);
        }
        for r in 0..R {
            let x = l.splat_f32(x[r]);
            for t in 0..T {
                acc[r][t] = l.fma_wide(w_k[t], x, acc[r][t]);
            }
        }
    }
}

/// Few rows: panels of 4, 2 or 1, enough tiles at once to keep independent sums in flight.
pub(super) struct FewRows<'a, E>(pub(super) Tiles<'a, E>);

/// Panel widths that [`FewRows`] has code for.
pub(super) const FEW_PANELS: &[usize] = &[4, 2, 1];

impl<L: Lanes, E: Element> Job<L> for FewRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        for strip in self.0.tiles.clone().step_by(4) {
            for &panel in &self.0.x.panels {
                match panel.width {
                    4 => {
                        for first in strip..self.0.tiles.end.min(strip + 4) {
                            self.panel::<L, 4, 1>(l, first, panel);
                        }
                    }
                    2 => {
                        for first in (strip..self.0.tiles.end.min(strip + 4)).step_by(2) {
                            self.panel::<L, 2, 2>(l, first, panel);
                        }
                    }
                    _ => self.panel::<L, 1, 4>(l, strip, panel),
                }
            }
        }
    }
}

impl<E: Element> FewRows<'_, E> {
    #[inline(always)]
    fn panel<L: Lanes, const R: usize, const T: usize>(&self, l: L, first: usize, panel: Panel) {
        let mut acc = [[l.splat_f32(0.0); T]; R];
        let x = self.0.x.panel::<R>(panel, 0..self.0.cols);
        multiply::<L, E, R, T>(l, self.0.strip::<T>(first), x, &mut acc);
        for r in 0..R {
            for (t, tile) in (first..self.0.tiles.end.min(first + T)).enumerate() {
                // SAFETY: this worker owns the tile.
                unsafe { self.0.out.tiles(tile..tile + 1) }.put_one(l, panel.start + r, acc[r][t]);
            }
        }
    }
}

/// Buffers of one worker for [`ManyRows`].
#[derive(Default)]
pub(super) struct Converted {
    values: Vec<Line>,
    sums: Vec<Line>,
}

/// Many rows: any panel width of [`Lanes::FLOAT_PANELS`].
pub(super) struct ManyRows<'a, E> {
    pub(super) tiles: Tiles<'a, E>,
    pub(super) buffer: &'a mut Converted,
}

/// Values of K converted to f32 at once: with two tiles 32 KB, which stays in L1 or near it.
const COLS_AT_ONCE: usize = 256;

impl<L: Lanes, E: Element> Job<L> for ManyRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let at_once = panels_at_once(L::FLOAT_PANELS[0], self.tiles.cols * 4);
        for panels in self.tiles.x.panels.chunks(at_once) {
            if L::TWO_TILES {
                self.tiles.strips::<L, 2>(l, panels, self.buffer);
            } else {
                self.tiles.strips::<L, 1>(l, panels, self.buffer);
            }
        }
    }
}

impl<E: Element> Tiles<'_, E> {
    /// Converts strips of T tiles, a part of K at a time, and multiplies each with all panels.
    #[inline(always)]
    fn strips<L: Lanes, const T: usize>(&self, l: L, panels: &[Panel], buffer: &mut Converted) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else { return };
        let rows = first.start..last.start + last.width;
        buffer.values.resize(T * COLS_AT_ONCE, Line::ZERO);
        for strip in self.tiles.clone().step_by(T) {
            let tiles = self.strip::<T>(strip);
            buffer.sums.clear();
            buffer.sums.resize(rows.len() * T, Line::ZERO);
            for start in (0..self.cols).step_by(COLS_AT_ONCE) {
                let chunk = start..self.cols.min(start + COLS_AT_ONCE);
                let values: &mut [[f32; ROWS]] = bytemuck::cast_slice_mut(&mut buffer.values);
                for t in 0..T {
                    for (to, from) in values[t * COLS_AT_ONCE..].iter_mut().zip(&tiles[t][chunk.clone()]) {
                        l.store_f32(E::load(l, from), to);
                    }
                }
                let mut w: [&[[f32; ROWS]]; T] = [&[]; T];
                for t in 0..T {
                    w[t] = &values[t * COLS_AT_ONCE..][..chunk.len()];
                }
                for &panel in panels {
                    let sums = &mut buffer.sums[(panel.start - rows.start) * T..][..panel.width * T];
                    let sums = sums.as_chunks_mut().0;
                    match panel.width {
                        8 => resume::<L, 8, T>(l, w, self.x.panel(panel, chunk.clone()), sums),
                        6 => resume::<L, 6, T>(l, w, self.x.panel(panel, chunk.clone()), sums),
                        4 => resume::<L, 4, T>(l, w, self.x.panel(panel, chunk.clone()), sums),
                        2 => resume::<L, 2, T>(l, w, self.x.panel(panel, chunk.clone()), sums),
                        _ => resume::<L, 1, T>(l, w, self.x.panel(panel, chunk.clone()), sums),
                    }
                }
            }
            // SAFETY: this worker owns the tiles.
            let out = unsafe { self.out.tiles(strip..self.tiles.end.min(strip + T)) };
            PutRows { out, rows: rows.clone(), lines: &buffer.sums, strides: [T, 1] }.run(l);
        }
    }
}

/// Continues the sums of one panel, `sums[row][tile]`, over a part of K.
#[inline(always)]
fn resume<L: Lanes, const R: usize, const T: usize>(
    l: L,
    w: [&[[f32; ROWS]]; T],
    x: &[[f32; R]],
    sums: &mut [[Line; T]],
) {
    let mut acc = [[l.splat_f32(0.0); T]; R];
    for r in 0..R {
        for t in 0..T {
            acc[r][t] = l.as_floats(l.load(&sums[r][t]));
        }
    }
    multiply::<L, F32, R, T>(l, w, x, &mut acc);
    for r in 0..R {
        for t in 0..T {
            l.store(l.as_bits(acc[r][t]), &mut sums[r][t]);
        }
    }
}
