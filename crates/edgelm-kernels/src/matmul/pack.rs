//! From GGUF rows to tiles of 16 interleaved rows.
//!
//! Quantized tile: the lone f16 of every block (16 halves per block, padded to whole lines), then the words of every
//! block. Float tile: for each k the values of the 16 rows, padded to whole lines. Rows beyond N are zero bytes.

use super::format::{Format, Words};
use super::lanes::{Line, ROWS};
use crate::Pool;
use std::mem::MaybeUninit;

/// Weights of one matrix as tiles of `per_tile` lines.
pub(super) struct Packed {
    lines: Box<[Line]>,
    per_tile: usize,
}

/// Pages of 2 MiB spare the page walks that a stream over gigabytes would otherwise wait for.
const HUGE_PAGE_BYTES: usize = 2 << 20;

impl Packed {
    pub(super) fn tile(&self, tile: usize) -> &[Line] {
        &self.lines[tile * self.per_tile..][..self.per_tile]
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Bytes of one tile.
    pub(super) fn tile_bytes(&self) -> usize {
        self.per_tile * size_of::<Line>()
    }

    /// Rows of a quantized format; `bytes` is whole rows of `blocks` GGUF blocks of `block_bytes`.
    pub(super) fn quantized<F: Format>(
        pool: &Pool,
        rows: usize,
        blocks: usize,
        block_bytes: usize,
        bytes: &[u8],
    ) -> Self {
        let halves = half_lines::<F>(blocks);
        Self::fill(pool, rows, halves + blocks * F::Words::COUNT, &|tile, lines| {
            let (half_lines, words) = lines.split_at_mut(halves);
            let half_values: &mut [[u16; ROWS]] = bytemuck::cast_slice_mut(half_lines);
            let mut row_words = vec![0; F::Words::COUNT];
            let lanes = ROWS.min(rows - tile * ROWS);
            for index in 0..blocks {
                let block_lines = &mut words[index * F::Words::COUNT..][..F::Words::COUNT];
                for lane in 0..lanes {
                    let block = &bytes[((tile * ROWS + lane) * blocks + index) * block_bytes..][..block_bytes];
                    for (word, bytes) in row_words.iter_mut().zip(block[F::WORDS_AT..].as_chunks().0) {
                        *word = u32::from_le_bytes(*bytes);
                    }
                    F::arrange(&mut row_words);
                    for (line, word) in block_lines.iter_mut().zip(&row_words) {
                        line.0[lane] = *word;
                    }
                    if let Some(at) = F::HALF_AT {
                        half_values[index][lane] = u16::from_le_bytes([block[at], block[at + 1]]);
                    }
                }
            }
        })
    }

    /// Rows of `cols` values of S bytes each.
    pub(super) fn floats<const S: usize>(pool: &Pool, rows: usize, cols: usize, bytes: &[u8]) -> Self {
        Self::fill(pool, rows, float_lines(S, cols), &|tile, lines| {
            let values: &mut [[u8; S]] = bytemuck::cast_slice_mut::<Line, u8>(lines).as_chunks_mut().0;
            let lanes = ROWS.min(rows - tile * ROWS);
            let rows = &bytes[tile * ROWS * cols * S..][..lanes * cols * S].as_chunks().0;
            for (k, values) in values.as_chunks_mut::<ROWS>().0[..cols].iter_mut().enumerate() {
                for lane in 0..lanes {
                    values[lane] = rows[lane * cols + k];
                }
            }
        })
    }

    fn fill(pool: &Pool, rows: usize, per_tile: usize, pack: &(dyn Fn(usize, &mut [Line]) + Sync)) -> Self {
        let tiles = if per_tile == 0 { 0 } else { rows.div_ceil(ROWS) };
        let mut lines: Box<[MaybeUninit<Line>]> = Box::new_uninit_slice(tiles * per_tile);
        advise_huge_pages(&mut lines);
        let base = SharedLines(lines.as_mut_ptr());
        pool.split(tiles, 1, &|range| {
            for tile in range {
                // SAFETY: tile < tiles, so the slice lies inside `lines`, and ranges of workers are disjoint. It is
                // filled before it is seen as initialized.
                let tile_lines = unsafe {
                    let slots = std::slice::from_raw_parts_mut(base.at(tile * per_tile), per_tile);
                    slots.fill(MaybeUninit::new(Line::ZERO));
                    &mut *(std::ptr::from_mut(slots) as *mut [Line])
                };
                pack(tile, tile_lines);
            }
        });
        // SAFETY: the loop above filled every tile.
        Self { lines: unsafe { lines.assume_init() }, per_tile }
    }
}

/// Lines of the section of lone halves.
pub(super) fn half_lines<F: Format>(blocks: usize) -> usize {
    if F::HALF_AT.is_some() { blocks.div_ceil(2) } else { 0 }
}

/// Lines of a float tile.
fn float_lines(value_bytes: usize, cols: usize) -> usize {
    (cols * ROWS * value_bytes).div_ceil(size_of::<Line>())
}

/// Pointer that workers write disjoint tiles through.
struct SharedLines(*mut MaybeUninit<Line>);

// SAFETY: only `Packed::fill` uses it, and there every worker touches its own tiles.
unsafe impl Sync for SharedLines {}

impl SharedLines {
    /// SAFETY: `index` must lie inside the allocation.
    unsafe fn at(&self, index: usize) -> *mut MaybeUninit<Line> {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(lines: &mut [MaybeUninit<Line>]) {
    let start = lines.as_mut_ptr().addr().next_multiple_of(HUGE_PAGE_BYTES);
    let end = lines.as_mut_ptr_range().end.addr() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if start < end {
        // SAFETY: whole pages inside one allocation of ours. Only advice: contents and validity do not change, and a
        // refusal costs nothing but speed.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &mut [MaybeUninit<Line>]) {}
