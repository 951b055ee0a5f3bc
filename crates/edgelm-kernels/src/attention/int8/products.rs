//! The two integer products of a tile of rows with a page, on vector lanes. Exact, so their order does not matter.

use super::{Page, Weights};
use crate::kv::{GROUPS, TOKEN_QUADS};
use crate::matmul::lanes::{Lanes, Line, ROWS};
use std::ops::Range;

/// Queries of a tile: `[row][lines]`, four components to a word, zeros after the last.
pub(super) struct Queries<'a> {
    pub(super) bytes: &'a [Line],
    /// Sum of the bytes, per row.
    pub(super) totals: &'a [i32],
    /// Lines of a row.
    pub(super) lines: usize,
}

/// scores[row][group][token] = Σ_e q[row][e] k[token][e] for the tokens of `groups`.
#[inline(always)]
pub(super) fn scores<L: Lanes>(
    l: L,
    page: &Page<'_>,
    queries: &Queries<'_>,
    groups: &Range<usize>,
    scores: &mut [[Line; GROUPS]],
) {
    let rows = queries.totals.len();
    in_registers(l, rows, groups.clone(), &mut Scores { page, queries, scores });
}

/// products[row][chunk][component] = Σ_s weights[row][s] v[s][component] over the tokens that count.
#[inline(always)]
pub(super) fn values<L: Lanes>(l: L, page: &Page<'_>, rows: usize, weights: &Weights, products: &mut [Line]) {
    in_registers(l, rows, 0..page.chunks, &mut Values { page, weights, products });
}

/// A product of a few rows whose sums stay in registers.
trait Product {
    /// Rows `row..row + R`, columns of sixteen `column..column + T`.
    fn block<L: Lanes, const R: usize, const T: usize>(&mut self, l: L, row: usize, column: usize);
}

/// Covers all rows and columns. Many rows make the most of a load of keys or values; few rows take more columns side by
/// side, since one chain of sums waits for itself. Sixteen sums with room for operands where there are 32 registers.
#[inline(always)]
fn in_registers<L: Lanes>(l: L, rows: usize, columns: Range<usize>, product: &mut impl Product) {
    let mut row = 0;
    while L::TWO_TILES && row + 8 <= rows {
        across::<L, 8, 2>(l, row, columns.clone(), product);
        row += 8;
    }
    while row + 4 <= rows {
        if L::TWO_TILES {
            across::<L, 4, 4>(l, row, columns.clone(), product);
        } else {
            across::<L, 4, 1>(l, row, columns.clone(), product);
        }
        row += 4;
    }
    while row + 2 <= rows {
        if L::TWO_TILES {
            across::<L, 2, 4>(l, row, columns.clone(), product);
        } else {
            across::<L, 2, 2>(l, row, columns.clone(), product);
        }
        row += 2;
    }
    if row < rows {
        across::<L, 1, 4>(l, row, columns, product);
    }
}

#[inline(always)]
fn across<L: Lanes, const R: usize, const T: usize>(
    l: L,
    row: usize,
    columns: Range<usize>,
    product: &mut impl Product,
) {
    let mut column = columns.start;
    while column + T <= columns.end {
        product.block::<L, R, T>(l, row, column);
        column += T;
    }
    while column < columns.end {
        product.block::<L, R, 1>(l, row, column);
        column += 1;
    }
}

struct Scores<'a> {
    page: &'a Page<'a>,
    queries: &'a Queries<'a>,
    scores: &'a mut [[Line; GROUPS]],
}

impl Product for Scores<'_> {
    #[inline(always)]
    fn block<L: Lanes, const R: usize, const T: usize>(&mut self, l: L, row: usize, group: usize) {
        let Queries { bytes, totals, lines } = *self.queries;
        let quads = self.page.quads;
        let mut q: [&[u32]; R] = [&[]; R];
        let mut sums = [[l.splat(0); T]; R];
        for r in 0..R {
            q[r] = &bytemuck::cast_slice(&bytes[(row + r) * lines..][..lines])[..quads];
            sums[r] = [l.splat((-L::SIGNED_OFFSET * totals[row + r]) as u32); T];
        }
        let mut k: [&[Line]; T] = [&[]; T];
        for t in 0..T {
            k[t] = &self.page.k[(group + t) * quads..][..quads];
        }
        for quad in 0..quads {
            let mut keys = [l.splat(0); T];
            for t in 0..T {
                keys[t] = l.signed(l.load(&k[t][quad]));
            }
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = l.dot_signed(sums[r][t], keys[t], q[r][quad]);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                l.store(sums[r][t], &mut self.scores[row + r][group + t]);
            }
        }
    }
}

struct Values<'a> {
    page: &'a Page<'a>,
    weights: &'a Weights,
    products: &'a mut [Line],
}

const _: () = assert!(TOKEN_QUADS == ROWS, "the weights of a row are one line");

impl Product for Values<'_> {
    #[inline(always)]
    fn block<L: Lanes, const R: usize, const T: usize>(&mut self, l: L, row: usize, chunk: usize) {
        let chunks = self.page.chunks;
        let weights: &[Line; R] = self.weights.bytes[row..].first_chunk().expect("a tile has R rows from `row` on");
        let mut sums = [[l.splat(0); T]; R];
        for quad in self.weights.quads.clone() {
            let v: &[Line; T] = self.page.v[quad * chunks + chunk..].first_chunk().expect("T chunks from `chunk` on");
            let mut values = [l.splat(0); T];
            for t in 0..T {
                values[t] = l.load(&v[t]);
            }
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = l.dot_unsigned(sums[r][t], values[t], weights[r].0[quad]);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                l.store(sums[r][t], &mut self.products[(row + r) * chunks + chunk + t]);
            }
        }
    }
}
