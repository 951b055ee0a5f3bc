//! From GGUF rows to tiles of 16 interleaved rows.
//!
//! Quantized tile: the lone f16 of every block (16 halves per block, padded to whole lines), then the words of every
//! block. Float tile: for each k the values of the 16 rows, padded to whole lines. Rows beyond N are zero bytes.
//!
//! All matrices that are packed together share one allocation, so that a model stands in huge pages from end to end.

use super::arena::Arena;
use super::format::{Format, Words};
use super::interleave::{Rows, halves, words};
use super::lanes::{Line, ROWS};
use crate::Isa;
use std::ops::Range;
use std::sync::Arc;

/// Weights of one matrix as tiles of `per_tile` lines.
pub(super) struct Packed {
    arena: Arc<Arena>,
    lines: Range<usize>,
    per_tile: usize,
}

impl Packed {
    /// Lines `lines` of an arena, filled by the methods of the same [`Layout`].
    pub(super) fn new(arena: Arc<Arena>, lines: Range<usize>, layout: Layout) -> Self {
        Self { arena, lines, per_tile: layout.per_tile }
    }

    pub(super) fn tile(&self, tile: usize) -> &[Line] {
        &self.arena.lines()[self.lines.clone()][tile * self.per_tile..][..self.per_tile]
    }

    /// All tiles.
    pub(super) fn tiles(&self) -> TileLines<'_> {
        TileLines { lines: &self.arena.lines()[self.lines.clone()], per_tile: self.per_tile, first: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Bytes of one tile.
    pub(super) fn tile_bytes(&self) -> usize {
        self.per_tile * size_of::<Line>()
    }
}

/// Tiles that stand side by side, wherever.
#[derive(Clone, Copy)]
pub(super) struct TileLines<'a> {
    pub(super) lines: &'a [Line],
    pub(super) per_tile: usize,
    /// Number of the first of them in its matrix.
    pub(super) first: usize,
}

impl<'a> TileLines<'a> {
    pub(super) fn tile(self, tile: usize) -> &'a [Line] {
        &self.lines[(tile - self.first) * self.per_tile..][..self.per_tile]
    }
}

/// How the rows of one matrix become tiles.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    rows: usize,
    row_bytes: usize,
    per_tile: usize,
    /// Fills the lines (zeros before) of a tile from its rows, at most [`ROWS`] of them.
    fill: fn(Isa, &[u8], usize, &mut [Line]),
    /// What rows become before that, and their bytes then.
    rewrite: Option<(Rewrite, usize)>,
}

/// Appends rows in another form.
type Rewrite = fn(&[u8], &mut Vec<u8>);

impl Layout {
    /// `rows` rows of `row_bytes` bytes in blocks of a quantized format.
    pub(super) fn quantized<F: Format>(rows: usize, row_bytes: usize) -> Self {
        let blocks = row_bytes / block_bytes::<F>();
        let per_tile = half_lines::<F>(blocks) + blocks * F::Words::COUNT;
        Self { rows, row_bytes, per_tile, fill: fill_blocks::<F>, rewrite: None }
    }

    /// `rows` rows of `row_bytes` bytes in blocks of `stored_bytes`, which `rewrite` makes blocks of a quantized format, as many.
    pub(super) fn rewritten<F: Format>(rows: usize, row_bytes: usize, stored_bytes: usize, rewrite: Rewrite) -> Self {
        let packed_bytes = row_bytes / stored_bytes * block_bytes::<F>();
        Self { row_bytes, rewrite: Some((rewrite, packed_bytes)), ..Self::quantized::<F>(rows, packed_bytes) }
    }

    /// `rows` rows of `row_bytes` bytes in values of S bytes.
    pub(super) fn floats<const S: usize>(rows: usize, row_bytes: usize) -> Self {
        let per_tile = (row_bytes * ROWS).div_ceil(size_of::<Line>());
        Self { rows, row_bytes, per_tile, fill: fill_floats::<S>, rewrite: None }
    }

    /// Lines of one tile.
    pub(super) fn per_tile(&self) -> usize {
        self.per_tile
    }

    pub(super) fn tiles(&self) -> usize {
        if self.per_tile == 0 { 0 } else { self.rows.div_ceil(ROWS) }
    }

    /// Lines of all tiles.
    pub(super) fn lines(&self) -> usize {
        self.tiles() * self.per_tile
    }

    /// Bytes of the rows of a whole tile.
    pub(super) fn source_bytes(&self) -> usize {
        ROWS * self.row_bytes
    }

    /// Lines of some tiles, counted from the matrix's first.
    pub(super) fn lines_of(&self, tiles: &Range<usize>) -> Range<usize> {
        tiles.start * self.per_tile..tiles.end * self.per_tile
    }

    /// Where the rows of some tiles stand in the bytes of all rows.
    pub(super) fn source_of(&self, tiles: &Range<usize>) -> Range<usize> {
        tiles.start * self.source_bytes()..(tiles.end * ROWS).min(self.rows) * self.row_bytes
    }

    /// Fills the lines of some tiles, zeros before, from the bytes of their rows.
    pub(super) fn pack(&self, isa: Isa, source: &[u8], lines: &mut [Line]) {
        let mut rewritten = Vec::new();
        for (rows, lines) in source.chunks(self.source_bytes()).zip(lines.chunks_exact_mut(self.per_tile)) {
            let Some((rewrite, row_bytes)) = self.rewrite else {
                (self.fill)(isa, rows, self.row_bytes, lines);
                continue;
            };
            rewritten.clear();
            rewrite(rows, &mut rewritten);
            (self.fill)(isa, &rewritten, row_bytes, lines);
        }
    }
}

fn fill_blocks<F: Format>(isa: Isa, bytes: &[u8], row_bytes: usize, lines: &mut [Line]) {
    let block_bytes = block_bytes::<F>();
    let rows = Rows { bytes, row_bytes, block_bytes };
    let (half_lines, word_lines) = lines.split_at_mut(half_lines::<F>(row_bytes / block_bytes));
    if let Some(at) = F::HALF_AT {
        halves(rows, at, bytemuck::cast_slice_mut(half_lines));
    }
    words(isa, rows, F::WORDS_AT, F::Words::COUNT, word_lines);
    for block in word_lines.chunks_exact_mut(F::Words::COUNT) {
        F::arrange(block);
    }
}

fn fill_floats<const S: usize>(isa: Isa, bytes: &[u8], row_bytes: usize, lines: &mut [Line]) {
    let rows = Rows { bytes, row_bytes, block_bytes: row_bytes };
    let count = row_bytes / size_of::<u32>();
    words(isa, rows, 0, count, lines);
    if S == size_of::<u16>() {
        // A word was two values; what belongs side by side is the same value of all rows.
        for line in &mut lines[..count] {
            let pairs = line.0;
            let halves: &mut [u16; 2 * ROWS] = bytemuck::cast_mut(&mut line.0);
            for lane in 0..ROWS {
                halves[lane] = pairs[lane] as u16;
                halves[ROWS + lane] = (pairs[lane] >> 16) as u16;
            }
        }
        if !row_bytes.is_multiple_of(size_of::<u32>()) {
            let odd = Rows { block_bytes: row_bytes, ..rows };
            halves(odd, row_bytes - size_of::<u16>(), bytemuck::cast_slice_mut(&mut lines[count..]));
        }
    }
}

/// Bytes of a block in a file: its words and, in some formats, one f16.
fn block_bytes<F: Format>() -> usize {
    size_of::<u32>() * F::Words::COUNT + if F::HALF_AT.is_some() { size_of::<u16>() } else { 0 }
}

/// Lines of the section of lone halves.
pub(super) fn half_lines<F: Format>(blocks: usize) -> usize {
    if F::HALF_AT.is_some() { blocks.div_ceil(2) } else { 0 }
}
