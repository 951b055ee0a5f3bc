//! Weights that are not held: their rows are made as f32 whenever they are multiplied.
//!
//! What it costs is making them, for every product again; what it saves is the memory of f32 weights. Numerics are those of a
//! matrix of F32: the same kernels see the same values.

use super::float::{self, Converted};
use super::lanes::{Lanes, Line, ROWS};
use super::output::Out;
use super::pack::{Layout, TileLines};
use crate::Isa;
use std::marker::PhantomData;
use std::ops::Range;

/// Where the rows of a matrix come from.
pub trait RowSource: Send + Sync {
    /// Writes rows `rows`, one after the other, to `out` `[rows, K]`. Several threads ask for different rows at once.
    fn write(&self, rows: Range<usize>, out: &mut [f32]);
}

/// Tiles that are made at once: 64 rows, few enough to stay in the cache of a core until they are multiplied, and as many as
/// the kernels for few rows take.
const TILES_AT_ONCE: usize = 4;

/// Buffers of one worker.
#[derive(Default)]
pub(super) struct Made {
    rows: Vec<f32>,
    lines: Vec<Line>,
}

/// Some tiles of one matrix, to be multiplied with all rows of x.
pub(super) struct Tiles<'a> {
    pub(super) source: &'a dyn RowSource,
    /// N and K.
    pub(super) shape: [usize; 2],
    pub(super) tiles: Range<usize>,
    pub(super) x: &'a super::activations::Floats,
    pub(super) out: &'a Out<'a>,
}

impl Tiles<'_> {
    /// Makes the rows of some tiles at a time, and multiplies them.
    pub(super) fn run<L: Lanes>(&self, l: L, isa: Isa, many: bool, made: &mut Made, converted: &mut Converted) {
        let [n, cols] = self.shape;
        for first in self.tiles.clone().step_by(TILES_AT_ONCE) {
            let tiles = first..self.tiles.end.min(first + TILES_AT_ONCE);
            let rows = tiles.start * ROWS..n.min(tiles.end * ROWS);
            made.rows.resize(rows.len() * cols, 0.0);
            self.source.write(rows.clone(), &mut made.rows);
            let layout = Layout::floats::<4>(rows.len(), cols * size_of::<f32>());
            made.lines.clear();
            made.lines.resize(layout.lines(), Line::ZERO);
            if cols > 0 {
                layout.pack(isa, bytemuck::cast_slice(&made.rows), &mut made.lines);
            }
            let weights = TileLines { lines: &made.lines, per_tile: layout.per_tile(), first };
            let (x, out) = (self.x, self.out);
            let tiles = float::Tiles::<float::F32> { weights, cols, tiles, x, out, element: PhantomData };
            if many {
                l.vector().enter(float::ManyRows { tiles, buffer: converted });
            } else {
                l.vector().enter(float::FewRows(tiles));
            }
        }
    }
}
