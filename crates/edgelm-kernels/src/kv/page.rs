//! The bytes of a page. Per head, in this order:
//!
//! | part | F32, F16 | Q8 | Q4 |
//! | --- | --- | --- | --- |
//! | keys | `[4 groups][component][16 tokens]` | `[4 groups][component / 4][16 tokens][4 components]` | `[4 groups][component / 8][16 tokens][4 components]` |
//! | values | `[64 tokens][component]` | `[token / 4][component / 16][16 components][4 tokens]` | `[token / 8][component / 16][16 components][4 tokens]` |
//! | scales of keys, of values | none | `[64 tokens]` each | `[64 tokens]` each |
//!
//! A byte of Q4 has two numbers, two's complement: those of two lines of Q8 that follow each other along the components of keys and
//! the tokens of values, the first in the low half.
//!
//! A score needs one key component of many tokens at a time and a result needs all components of one value at a time,
//! so lanes are tokens in the keys and components in the values: neither ever sums across lanes. What is summed lies in
//! fours in the bytes, side by side in a 32-bit word, as the integer dot products of every instruction set take it; sixteen
//! lines of keys, or of values a chunk apart, are one tile of a matrix unit. Components are padded with zeros, to a multiple
//! of 4 in the keys and of 16 in the values.
#![allow(unsafe_code)]

use super::spare::Spare;
use super::{KvDtype, KvShape};
use crate::matmul::lanes::Line as Words;
use crate::simd::LANES;
use std::sync::Arc;

/// Tokens of a page.
pub(crate) const PAGE_TOKENS: usize = 64;
/// Tokens whose key components lie side by side.
pub(crate) const GROUP_TOKENS: usize = LANES;
/// Groups of a page.
pub(crate) const GROUPS: usize = PAGE_TOKENS / GROUP_TOKENS;
/// Fours of tokens of a page.
pub(crate) const TOKEN_QUADS: usize = PAGE_TOKENS / 4;

/// Components of a stored key: `head_dim` with its padding.
pub(crate) fn component_rows(head_dim: usize) -> usize {
    head_dim.next_multiple_of(4)
}

/// Vectors of a stored value: `head_dim` with its padding, in sixteens.
pub(crate) fn value_chunks(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES)
}

/// Lines of the keys of a group in four bits.
pub(crate) fn key_pairs(head_dim: usize) -> usize {
    component_rows(head_dim).div_ceil(8)
}

/// The unit of allocation, so that every part of a page begins on a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; LINE_BYTES]);

impl Line {
    pub(super) const ZERO: Self = Self([0; LINE_BYTES]);
}

const LINE_BYTES: usize = 64;

// SAFETY: bytes without padding (the size is the alignment); every bit pattern, zeros too, is a value.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; `Copy` and `'static`.
unsafe impl bytemuck::Pod for Line {}

/// A page. Its memory goes back to where it came from.
pub(super) struct Page {
    lines: Box<[Line]>,
    spare: Arc<Spare>,
}

impl Page {
    /// Of zeros.
    pub(super) fn empty(spare: &Arc<Spare>) -> Self {
        let mut lines = spare.take();
        lines.fill(Line::ZERO);
        Self { lines, spare: Arc::clone(spare) }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        let mut lines = self.spare.take();
        lines.copy_from_slice(&self.lines);
        Self { lines, spare: Arc::clone(&self.spare) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.lines));
    }
}

/// A number per token of a page.
pub(crate) type PageRow = [[f32; LANES]; GROUPS];

/// Keys and values of one head in one page.
pub(crate) enum HeadPage<'a> {
    /// `k[group · rows + component][token]`, `v[token · chunks + chunk][component]`.
    F32 { k: &'a [[f32; LANES]], v: &'a [[f32; LANES]] },
    /// The same in half precision.
    F16 { k: &'a [[u16; LANES]], v: &'a [[u16; LANES]] },
    /// Byte `component % 4` of `k[group · rows / 4 + component / 4][token]`, byte `token % 4` of
    /// `v[token / 4 · chunks + component / 16][component % 16]`; scales by group.
    Q8 { k: &'a [Words], v: &'a [Words], k_scales: &'a PageRow, v_scales: &'a PageRow },
    /// The same, two lines in one.
    Q4 { k: &'a [Words], v: &'a [Words], k_scales: &'a PageRow, v_scales: &'a PageRow },
}

/// [`HeadPage`] for writing, elements one by one where they do not come in words.
pub(super) enum HeadPageMut<'a> {
    F32 { k: &'a mut [f32], v: &'a mut [f32] },
    F16 { k: &'a mut [u16], v: &'a mut [u16] },
    Q8 { k: &'a mut [Words], v: &'a mut [Words], k_scales: &'a mut [f32], v_scales: &'a mut [f32] },
    Q4 { k: &'a mut [Words], v: &'a mut [Words], k_scales: &'a mut [f32], v_scales: &'a mut [f32] },
}

/// Where things lie in the pages of a layer.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    shape: KvShape,
    dtype: KvDtype,
    key_lines: usize,
    value_lines: usize,
    /// Of the keys; as many again follow for the values.
    scale_lines: usize,
}

impl Layout {
    pub(super) fn new(shape: KvShape, dtype: KvDtype) -> Self {
        assert!(shape.num_key_value_heads > 0 && shape.head_dim > 0, "a cache of nothing: {shape:?}");
        let element_bits = match dtype {
            KvDtype::F32 => 32,
            KvDtype::F16 => 16,
            KvDtype::Q8 => 8,
            KvDtype::Q4 => 4,
        };
        let lines = |components: usize| PAGE_TOKENS * components * element_bits / 8 / LINE_BYTES;
        let scale_lines = match dtype {
            KvDtype::Q8 | KvDtype::Q4 => PAGE_TOKENS * size_of::<f32>() / LINE_BYTES,
            KvDtype::F32 | KvDtype::F16 => 0,
        };
        let key_lines = match dtype {
            KvDtype::Q4 => GROUPS * key_pairs(shape.head_dim),
            _ => lines(component_rows(shape.head_dim)),
        };
        let value_lines = lines(value_chunks(shape.head_dim) * LANES);
        Self { shape, dtype, key_lines, value_lines, scale_lines }
    }

    pub(super) fn shape(&self) -> KvShape {
        self.shape
    }

    fn head_lines(&self) -> usize {
        self.key_lines + self.value_lines + 2 * self.scale_lines
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.shape.num_key_value_heads * self.head_lines() * LINE_BYTES
    }

    /// Memory for such pages.
    pub(super) fn spare(&self) -> Arc<Spare> {
        Spare::of(self.page_bytes() / LINE_BYTES)
    }

    pub(super) fn head<'a>(&self, page: &'a Page, head: usize) -> HeadPage<'a> {
        let lines = &page.lines[head * self.head_lines()..][..self.head_lines()];
        let (k, rest) = lines.split_at(self.key_lines);
        let (v, scales) = rest.split_at(self.value_lines);
        match self.dtype {
            KvDtype::F32 => HeadPage::F32 { k: bytemuck::cast_slice(k), v: bytemuck::cast_slice(v) },
            KvDtype::F16 => HeadPage::F16 { k: bytemuck::cast_slice(k), v: bytemuck::cast_slice(v) },
            KvDtype::Q8 | KvDtype::Q4 => {
                let (k, v) = (bytemuck::cast_slice(k), bytemuck::cast_slice(v));
                let (k_scales, v_scales) = scales.split_at(self.scale_lines);
                let k_scales = bytemuck::from_bytes(bytemuck::cast_slice(k_scales));
                let v_scales = bytemuck::from_bytes(bytemuck::cast_slice(v_scales));
                match self.dtype {
                    KvDtype::Q4 => HeadPage::Q4 { k, v, k_scales, v_scales },
                    _ => HeadPage::Q8 { k, v, k_scales, v_scales },
                }
            }
        }
    }

    pub(super) fn head_mut<'a>(&self, page: &'a mut Page, head: usize) -> HeadPageMut<'a> {
        let lines = &mut page.lines[head * self.head_lines()..][..self.head_lines()];
        let (k, rest) = lines.split_at_mut(self.key_lines);
        let (v, scales) = rest.split_at_mut(self.value_lines);
        match self.dtype {
            KvDtype::F32 => HeadPageMut::F32 { k: bytemuck::cast_slice_mut(k), v: bytemuck::cast_slice_mut(v) },
            KvDtype::F16 => HeadPageMut::F16 { k: bytemuck::cast_slice_mut(k), v: bytemuck::cast_slice_mut(v) },
            KvDtype::Q8 | KvDtype::Q4 => {
                let (k, v) = (bytemuck::cast_slice_mut(k), bytemuck::cast_slice_mut(v));
                let (k_scales, v_scales) = scales.split_at_mut(self.scale_lines);
                let (k_scales, v_scales) = (bytemuck::cast_slice_mut(k_scales), bytemuck::cast_slice_mut(v_scales));
                match self.dtype {
                    KvDtype::Q4 => HeadPageMut::Q4 { k, v, k_scales, v_scales },
                    _ => HeadPageMut::Q8 { k, v, k_scales, v_scales },
                }
            }
        }
    }
}

const _: () = assert!(PAGE_TOKENS == GROUPS * GROUP_TOKENS);
