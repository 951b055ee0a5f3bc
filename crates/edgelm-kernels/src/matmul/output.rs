//! Where workers write their columns of a result.

use super::lanes::{Lanes, ROWS};
use std::marker::PhantomData;

/// A result `[M, N]` that several workers fill, tile by tile: a tile is 16 columns.
pub(super) struct Out<'a> {
    base: *mut f32,
    rows: usize,
    cols: usize,
    bias: Option<&'a [f32]>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through `put`, whose callers promise to touch disjoint tiles.
unsafe impl Sync for Out<'_> {}
// SAFETY: as above; it stands for a `&mut [f32]`.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// `out` holds whole rows of `cols` values; `bias` is one row.
    pub(super) fn new(out: &'a mut [f32], cols: usize, bias: Option<&'a [f32]>) -> Self {
        let rows = out.len().checked_div(cols).unwrap_or(0);
        Self { base: out.as_mut_ptr(), rows, cols, bias, borrow: PhantomData }
    }

    /// Writes the columns of one tile in one row, bias added; lanes beyond the last column are dropped.
    ///
    /// SAFETY: no other thread may write this tile meanwhile.
    #[inline(always)]
    pub(super) unsafe fn put<L: Lanes>(&self, l: L, row: usize, tile: usize, lanes: &[f32; ROWS]) {
        let start = tile * ROWS;
        assert!(row < self.rows && start < self.cols);
        let width = ROWS.min(self.cols - start);
        // SAFETY: row and columns were just checked to lie inside the slice; the caller promises exclusive access.
        let to = unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.cols + start), width) };
        let bias = self.bias.map(|bias| &bias[start..start + width]);
        if let Some(to) = to.first_chunk_mut() {
            let mut value = l.load_f32(lanes);
            if let Some(bias) = bias.and_then(|bias| bias.first_chunk()) {
                value = l.fma(l.load_f32(bias), l.splat_f32(1.0), value);
            }
            l.store_f32(value, to);
        } else {
            for (index, value) in to.iter_mut().enumerate() {
                *value = lanes[index] + bias.map_or(0.0, |bias| bias[index]);
            }
        }
    }
}
