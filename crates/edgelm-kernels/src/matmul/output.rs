//! Where workers write their columns of a result.

use super::lanes::{Job, Lanes, Line, ROWS};
use std::marker::PhantomData;
use std::ops::Range;

/// A result `[M, N]` that several workers fill, tile by tile: a tile is 16 columns.
pub(super) struct Out<'a> {
    base: *mut f32,
    rows: usize,
    cols: usize,
    bias: Option<&'a [f32]>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through `tiles`, whose callers promise to touch disjoint ones.
unsafe impl Sync for Out<'_> {}
// SAFETY: as above; it stands for a `&mut [f32]`.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// `out` holds whole rows of `cols` values; `bias` is one row.
    pub(super) fn new(out: &'a mut [f32], cols: usize, bias: Option<&'a [f32]>) -> Self {
        let rows = out.len().checked_div(cols).unwrap_or(0);
        Self { base: out.as_mut_ptr(), rows, cols, bias, borrow: PhantomData }
    }

    /// The columns of some tiles.
    ///
    /// # Safety
    /// As long as the result lives, nobody else may write these tiles.
    #[inline(always)]
    pub(super) unsafe fn tiles(&self, tiles: Range<usize>) -> OutTiles<'_> {
        let columns = tiles.start * ROWS..self.cols.min(tiles.end * ROWS);
        assert!(columns.start <= columns.end);
        OutTiles { out: self, bias: self.bias.map(|bias| &bias[columns.clone()]), columns }
    }
}

/// Where some tiles are written.
pub(super) struct OutTiles<'a> {
    out: &'a Out<'a>,
    columns: Range<usize>,
    bias: Option<&'a [f32]>,
}

impl OutTiles<'_> {
    /// Writes one row, bias added. Its tiles are every `stride`th of `lines`; lanes beyond the last column are dropped, and so
    /// is a row beyond the last.
    #[inline(always)]
    pub(super) fn put<L: Lanes>(&self, l: L, row: usize, lines: &[Line], stride: usize) {
        if row >= self.out.rows {
            return;
        }
        // SAFETY: row and columns lie inside the slice, and `tiles` was promised that nobody else writes the columns.
        let to = unsafe {
            let start = self.out.base.add(row * self.out.cols + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        };
        let bias = self.bias.unwrap_or_default();
        let (whole, rest) = to.as_chunks_mut::<ROWS>();
        let (whole_bias, rest_bias) = bias.as_chunks::<ROWS>();
        let count = whole.len();
        for (tile, to) in whole.iter_mut().enumerate() {
            let mut value = l.as_floats(l.load(&lines[tile * stride]));
            if self.bias.is_some() {
                value = l.fma(l.load_f32(&whole_bias[tile]), l.splat_f32(1.0), value);
            }
            l.store_f32(value, to);
        }
        for (index, value) in rest.iter_mut().enumerate() {
            *value = f32::from_bits(lines[count * stride].0[index]);
            if self.bias.is_some() {
                *value += rest_bias[index];
            }
        }
    }

    /// Writes one row of one tile.
    #[inline(always)]
    pub(super) fn put_one<L: Lanes>(&self, l: L, row: usize, value: L::F) {
        let mut line = Line::ZERO;
        l.store(l.as_bits(value), &mut line);
        self.put(l, row, &[line], 1);
    }
}

/// Writes rows that stand in memory.
pub(super) struct PutRows<'a> {
    pub(super) out: OutTiles<'a>,
    pub(super) rows: Range<usize>,
    pub(super) lines: &'a [Line],
    /// Lines from one row to the next, and from one tile to the next.
    pub(super) strides: [usize; 2],
}

impl<L: Lanes> Job<L> for PutRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        for (index, row) in self.rows.enumerate() {
            self.out.put(l, row, &self.lines[index * self.strides[0]..], self.strides[1]);
        }
    }
}
