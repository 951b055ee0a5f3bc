//! A page's keys and values as lanes of f32, whatever they are stored in.

use crate::kv::GROUP_TOKENS;
use crate::simd::{LANES, Lanes};
use std::ops::Range;

/// One head of one page. Every implementation gives the same numbers for the same stored page.
pub(super) trait Stored: Copy {
    /// Components 4 · quad .. 4 · quad + 4 of the keys of a group; lanes are tokens.
    fn keys<L: Lanes>(&self, group: usize, quad: usize) -> [L; 4];
    /// Sixteen components of a token's value; lanes are components.
    fn values<L: Lanes>(&self, token: usize, chunk: usize) -> L;
}

/// [`crate::kv::HeadPage::F32`].
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    pub(super) k: &'a [[f32; LANES]],
    pub(super) v: &'a [[f32; LANES]],
    pub(super) components: usize,
    pub(super) chunks: usize,
}

impl Stored for Floats<'_> {
    #[inline(always)]
    fn keys<L: Lanes>(&self, group: usize, quad: usize) -> [L; 4] {
        let [a, b, c, d] = four(self.k, group * self.components + 4 * quad);
        [L::load(a), L::load(b), L::load(c), L::load(d)]
    }
    #[inline(always)]
    fn values<L: Lanes>(&self, token: usize, chunk: usize) -> L {
        L::load(&self.v[token * self.chunks + chunk])
    }
}

/// [`crate::kv::HeadPage::F16`].
#[derive(Clone, Copy)]
pub(super) struct Halves<'a> {
    pub(super) k: &'a [[u16; LANES]],
    pub(super) v: &'a [[u16; LANES]],
    pub(super) components: usize,
    pub(super) chunks: usize,
}

impl Stored for Halves<'_> {
    #[inline(always)]
    fn keys<L: Lanes>(&self, group: usize, quad: usize) -> [L; 4] {
        let [a, b, c, d] = four(self.k, group * self.components + 4 * quad);
        [L::load_f16(a), L::load_f16(b), L::load_f16(c), L::load_f16(d)]
    }
    #[inline(always)]
    fn values<L: Lanes>(&self, token: usize, chunk: usize) -> L {
        L::load_f16(&self.v[token * self.chunks + chunk])
    }
}

#[inline(always)]
fn four<T>(rows: &[T], first: usize) -> &[T; 4] {
    rows[first..].first_chunk().expect("components come in fours")
}

/// Room for one page of one head in f32.
#[derive(Default)]
pub(super) struct Unpacked {
    k: Vec<[f32; LANES]>,
    v: Vec<[f32; LANES]>,
}

impl Unpacked {
    /// Keys of the groups that `tokens` touch and values of `tokens`; other places hold whatever was there.
    #[inline(always)]
    pub(super) fn fill<L: Lanes>(
        &mut self,
        stored: impl Stored,
        tokens: &Range<usize>,
        components: usize,
        chunks: usize,
    ) -> Floats<'_> {
        let groups = tokens.start / GROUP_TOKENS..tokens.end.div_ceil(GROUP_TOKENS);
        if self.k.len() < groups.end * components {
            self.k.resize(groups.end * components, [0.0; LANES]);
        }
        if self.v.len() < tokens.end * chunks {
            self.v.resize(tokens.end * chunks, [0.0; LANES]);
        }
        for group in groups {
            let rows = &mut self.k[group * components..][..components];
            for (quad, rows) in rows.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for (keys, row) in stored.keys::<L>(group, quad).into_iter().zip(rows) {
                    keys.store(row);
                }
            }
        }
        for token in tokens.clone() {
            for (chunk, row) in self.v[token * chunks..][..chunks].iter_mut().enumerate() {
                stored.values::<L>(token, chunk).store(row);
            }
        }
        Floats { k: &self.k, v: &self.v, components, chunks }
    }
}
