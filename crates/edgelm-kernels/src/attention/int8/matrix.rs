//! The two integer products of a tile with a page in matrix registers: the same sums as in `products`.
#![allow(unsafe_code)]

use super::products::Queries;
use super::{Page, TILE_ROWS, Weights};
use crate::kv::{GROUPS, TOKEN_QUADS};
use crate::matmul::lanes::{Lanes, Line, MatrixFour, ROWS};

/// Fewer rows leave too much of a register empty.
const LEAST_ROWS: usize = 4;

/// Whether heads of this size fit: keys in whole registers, values in fours of columns.
pub(super) fn fits<L: Lanes>(quads: usize, rows: usize) -> bool {
    L::MATRIX && quads.is_multiple_of(ROWS) && rows >= LEAST_ROWS
}

/// `products::scores` of all groups, for sixteen rows of which those beyond the tile's are left to chance.
#[inline(always)]
pub(super) fn scores<L: Lanes>(l: L, page: &Page<'_>, queries: &Queries<'_>, scores: &mut [[Line; GROUPS]]) {
    assert!(queries.bytes.len() >= TILE_ROWS * queries.lines && page.k.len() >= GROUPS * page.quads);
    assert!(scores.len() >= TILE_ROWS && queries.lines * ROWS == page.quads);
    let four = MatrixFour {
        unsigned: false,
        steps: queries.lines,
        x: queries.bytes.as_ptr(),
        x_stride: queries.lines,
        q: page.k.as_ptr(),
        q_stride: 1,
        step_stride: ROWS,
        column_stride: page.quads,
        to: scores.as_mut_ptr().cast(),
        to_stride: GROUPS,
    };
    // SAFETY: the task began with 64 bytes where `fits`; the lengths were just checked: sixteen queries of `lines` lines,
    // four groups of keys of as many steps of sixteen lines, sixteen rows of four groups of sums.
    unsafe { l.matrix_four(&four) }
}

/// `products::values` over all tokens, with the same freedom.
#[inline(always)]
pub(super) fn values<L: Lanes>(l: L, page: &Page<'_>, weights: &Weights, products: &mut [Line]) {
    let chunks = page.chunks;
    assert!(page.v.len() >= TOKEN_QUADS * chunks);
    assert!(products.len() >= TILE_ROWS * chunks && chunks.is_multiple_of(4));
    for chunk in (0..chunks).step_by(4) {
        let four = MatrixFour {
            unsigned: true,
            steps: 1,
            x: weights.bytes.as_ptr(),
            x_stride: 1,
            q: page.v[chunk..].as_ptr(),
            q_stride: chunks,
            step_stride: 0,
            column_stride: 1,
            to: products[chunk..].as_mut_ptr(),
            to_stride: chunks,
        };
        // SAFETY: as above: sixteen rows of one line of weights, sixteen lines of four tokens and four chunks of values,
        // sixteen rows of sums.
        unsafe { l.matrix_four(&four) }
    }
}
