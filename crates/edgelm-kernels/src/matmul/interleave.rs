//! Sixteen rows of blocks, interleaved word by word: the memory-bound part of loading a model.
//!
//! Words go four at a time: sixteen loads of 16 bytes become four lines by a 4 × 4 transpose in every 128-bit part of
//! the registers. That is some 20 shuffles for 256 bytes, fast enough for the memory of any CPU that has the registers.

use super::lanes::{Line, ROWS};
use crate::Isa;

/// Rows of blocks, one after the other; at most [`ROWS`].
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) block_bytes: usize,
}

impl<'a> Rows<'a> {
    fn count(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// What stands `offset` bytes into a row, to its end.
    #[inline(always)]
    fn at(&self, row: usize, offset: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes + offset..(row + 1) * self.row_bytes]
    }
}

/// out[block · count + w] lane r = word w of `count` in a block of row r; the words begin `at` bytes into their block.
/// Lanes without a row stay as they are.
pub(super) fn words(isa: Isa, rows: Rows<'_>, at: usize, count: usize, out: &mut [Line]) {
    if count == 0 || rows.row_bytes == 0 {
        return;
    }
    if rows.count() < ROWS {
        return words_scalar(rows, at, count, out);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx if crate::isa::Avx512::<false>::detect().is_some() => {
            // SAFETY: the features were just detected.
            unsafe { x86::words_avx512(rows, at, count, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni if crate::isa::Avx2::<false>::detect().is_some() => {
            // SAFETY: as above.
            unsafe { x86::words_avx2(rows, at, count, out) }
        }
        _ => words_scalar(rows, at, count, out),
    }
}

fn words_scalar(rows: Rows<'_>, at: usize, count: usize, out: &mut [Line]) {
    for (block, lines) in out.chunks_exact_mut(count).enumerate() {
        for lane in 0..rows.count() {
            let words = rows.at(lane, block * rows.block_bytes + at).as_chunks().0;
            for (line, word) in lines.iter_mut().zip(words) {
                line.0[lane] = u32::from_le_bytes(*word);
            }
        }
    }
}

/// out[block][r] = the two bytes that begin `at` bytes into a block of row r.
pub(super) fn halves(rows: Rows<'_>, at: usize, out: &mut [[u16; ROWS]]) {
    if rows.row_bytes == 0 {
        return;
    }
    for lane in 0..rows.count() {
        for (block, halves) in rows.at(lane, 0).chunks_exact(rows.block_bytes).zip(&mut *out) {
            halves[lane] = u16::from_le_bytes([block[at], block[at + 1]]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Line, ROWS, Rows};
    use std::arch::x86_64::*;

    /// Words that one transpose takes.
    const STEP: usize = 4;

    /// Calls `body(source of each row, lines)` for every run of at most STEP words of every block.
    #[inline(always)]
    fn each_run(
        rows: Rows<'_>,
        at: usize,
        count: usize,
        out: &mut [Line],
        mut body: impl FnMut([*const u8; ROWS], &mut [Line]),
    ) {
        assert!(rows.bytes.len() >= ROWS * rows.row_bytes);
        let blocks = out.len() / count;
        // The last byte that a run reads is inside its row.
        assert!(blocks == 0 || (blocks - 1) * rows.block_bytes + at + 4 * count <= rows.row_bytes);
        for (block, lines) in out.chunks_exact_mut(count).enumerate() {
            for (run, lines) in lines.chunks_mut(STEP).enumerate() {
                let offset = block * rows.block_bytes + at + 4 * STEP * run;
                body(std::array::from_fn(|row| rows.bytes.as_ptr().wrapping_add(row * rows.row_bytes + offset)), lines);
            }
        }
    }

    /// The first `count` words at `from`, zeros after them.
    ///
    /// # Safety
    /// That many words can be read.
    #[inline(always)]
    unsafe fn load(from: *const u8, count: usize) -> __m128i {
        // SAFETY: the caller's promise; the CPU has SSE2 and more, as both callers need AVX2.
        unsafe {
            if count == STEP {
                return _mm_loadu_si128(from.cast());
            }
            let mut words = [0_u32; STEP];
            std::ptr::copy_nonoverlapping(from, words.as_mut_ptr().cast(), 4 * count.min(STEP));
            _mm_loadu_si128(words.as_ptr().cast())
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F, BW, VL and DQ.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn words_avx512(rows: Rows<'_>, at: usize, count: usize, out: &mut [Line]) {
        each_run(rows, at, count, out, |from, lines| {
            // SAFETY: `each_run` gives addresses of as many words as there are lines.
            unsafe {
                let quad = |first: usize| {
                    let part = |row: usize| load(from[first + row], lines.len());
                    let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(part(0)), part(4));
                    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, part(8)), part(12))
                };
                let (a, b, c, d) = (quad(0), quad(1), quad(2), quad(3));
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                let words = [
                    _mm512_unpacklo_epi64(ab, cd),
                    _mm512_unpackhi_epi64(ab, cd),
                    _mm512_unpacklo_epi64(ab_high, cd_high),
                    _mm512_unpackhi_epi64(ab_high, cd_high),
                ];
                for (line, word) in lines.iter_mut().zip(words) {
                    _mm512_store_si512(std::ptr::from_mut(line).cast(), word);
                }
            }
        });
    }

    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn words_avx2(rows: Rows<'_>, at: usize, count: usize, out: &mut [Line]) {
        each_run(rows, at, count, out, |from, lines| {
            for half in 0..2 {
                // SAFETY: `each_run` gives addresses of as many words as there are lines; a line has two halves.
                unsafe {
                    let pair = |first: usize| {
                        let part = |row: usize| load(from[8 * half + first + row], lines.len());
                        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part(0)), part(4))
                    };
                    let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
                    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                    let words = [
                        _mm256_unpacklo_epi64(ab, cd),
                        _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(ab_high, cd_high),
                        _mm256_unpackhi_epi64(ab_high, cd_high),
                    ];
                    for (line, word) in lines.iter_mut().zip(words) {
                        _mm256_store_si256(line.0[8 * half..].as_mut_ptr().cast(), word);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_gives_the_words_of_the_definition() {
        // (words of a block, bytes of a block, where the words begin): as in the formats, and a single long block.
        let shapes = [
            (4, 18, 2),
            (5, 20, 0),
            (5, 22, 2),
            (6, 24, 0),
            (8, 34, 2),
            (52, 210, 0),
            (1, 4, 0),
            (3, 14, 1),
            (97, 388, 0),
        ];
        for isa in Isa::available() {
            for (count, block_bytes, at) in shapes {
                for blocks in [0, 1, 2, 7] {
                    for row_count in [1, 3, 15, 16] {
                        let row_bytes = blocks * block_bytes;
                        let bytes: Vec<u8> = (0..row_count * row_bytes).map(|i| (i * 37 % 251) as u8).collect();
                        let rows = Rows { bytes: &bytes, row_bytes, block_bytes };
                        let mut got = vec![Line([7; ROWS]); blocks * count];
                        words(isa, rows, at, count, &mut got);
                        for (index, line) in got.iter().enumerate() {
                            for (lane, &word) in line.0.iter().enumerate() {
                                let from = lane * row_bytes + index / count * block_bytes + at + 4 * (index % count);
                                let want = if lane < row_count {
                                    u32::from_le_bytes(bytes[from..from + 4].try_into().expect("4 bytes"))
                                } else {
                                    7
                                };
                                assert_eq!(word, want, "{isa} {count} words of {block_bytes}, {row_count} rows");
                            }
                        }
                    }
                }
            }
        }
    }
}
