//! Pages of int4 in the form that integer products take.

use crate::kv::{GROUPS, TOKEN_QUADS};
use crate::matmul::lanes::Line;

/// Room for one page of one head in bytes.
#[derive(Default)]
pub(super) struct Expanded {
    /// As in a page of int8.
    pub(super) k: Vec<Line>,
    pub(super) v: Vec<Line>,
}

impl Expanded {
    /// All numbers of a page of [`crate::kv::HeadPage::Q4`] whose keys have `quads` fours of components and whose values
    /// `chunks` sixteens.
    #[inline(always)]
    pub(super) fn fill(&mut self, k: &[Line], v: &[Line], quads: usize, chunks: usize) {
        self.k.resize(GROUPS * quads, Line::ZERO);
        self.v.resize(TOKEN_QUADS * chunks, Line::ZERO);
        for (lines, pairs) in self.k.chunks_exact_mut(quads).zip(k.chunks_exact(quads.div_ceil(2))) {
            for (lines, pair) in lines.chunks_mut(2).zip(pairs) {
                for (half, line) in lines.iter_mut().enumerate() {
                    expand(pair, 4 * half, line);
                }
            }
        }
        for (lines, pairs) in self.v.chunks_exact_mut(2 * chunks).zip(v.chunks_exact(chunks)) {
            let (first, second) = lines.split_at_mut(chunks);
            for ((first, second), pair) in first.iter_mut().zip(second).zip(pairs) {
                expand(pair, 0, first);
                expand(pair, 4, second);
            }
        }
    }
}

/// One half of each byte, with its sign.
#[inline(always)]
fn expand(pair: &Line, shift: usize, line: &mut Line) {
    for (to, word) in line.0.iter_mut().zip(pair.0) {
        // Eight more than each, so that no byte borrows from the next when they are taken off again.
        let more = (word >> shift & 0x0F0F_0F0F) ^ 0x0808_0808;
        *to = ((more | 0x8080_8080) - 0x0808_0808) ^ 0x8080_8080;
    }
}
