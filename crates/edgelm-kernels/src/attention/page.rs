//! A page's keys and values as f32.

use crate::kv::{GROUP_TOKENS, HeadPage};
use crate::simd::{LANES, Lanes};
use std::ops::Range;

/// One page of one head in f32, as [`HeadPage::F32`] lays it out.
#[derive(Default)]
pub(super) struct Unpacked {
    k: Vec<[f32; LANES]>,
    v: Vec<[f32; LANES]>,
}

type KeysAndValues<'a> = (&'a [[f32; LANES]], &'a [[f32; LANES]]);

/// Keys of the groups that `tokens` touch and values of `tokens`; other places hold whatever was there.
#[inline(always)]
pub(super) fn unpack<'a, L: Lanes>(
    page: HeadPage<'a>,
    tokens: &Range<usize>,
    components: usize,
    chunks: usize,
    unpacked: &'a mut Unpacked,
) -> KeysAndValues<'a> {
    let groups = tokens.start / GROUP_TOKENS..tokens.end.div_ceil(GROUP_TOKENS);
    let key_rows = groups.start * components..groups.end * components;
    let value_rows = tokens.start * chunks..tokens.end * chunks;
    match page {
        HeadPage::F32 { k, v } => return (k, v),
        HeadPage::F16 { k, v } => {
            unpacked.fit(k.len(), v.len());
            for (to, from) in unpacked.k[key_rows.clone()].iter_mut().zip(&k[key_rows]) {
                L::load_f16(from).store(to);
            }
            for (to, from) in unpacked.v[value_rows.clone()].iter_mut().zip(&v[value_rows]) {
                L::load_f16(from).store(to);
            }
        }
        HeadPage::Q8 { k, v, k_scales, v_scales } => {
            unpacked.fit(4 * k.len(), v.len());
            for group in groups {
                let scales = L::load(&k_scales[group]);
                let to = unpacked.k[group * components..][..components].as_chunks_mut::<4>().0;
                for (to, from) in to.iter_mut().zip(&k[group * components / 4..]) {
                    for (to, bytes) in to.iter_mut().zip(L::load_i8x4(from)) {
                        bytes.mul(scales).store(to);
                    }
                }
            }
            for token in tokens.clone() {
                let scale = L::splat(v_scales[token]);
                let row = token * chunks..(token + 1) * chunks;
                for (to, from) in unpacked.v[row.clone()].iter_mut().zip(&v[row]) {
                    L::load_i8(from).mul(scale).store(to);
                }
            }
        }
    }
    (&unpacked.k, &unpacked.v)
}

impl Unpacked {
    fn fit(&mut self, key_rows: usize, value_rows: usize) {
        if self.k.len() < key_rows {
            self.k.resize(key_rows, [0.0; LANES]);
        }
        if self.v.len() < value_rows {
            self.v.resize(value_rows, [0.0; LANES]);
        }
    }
}
