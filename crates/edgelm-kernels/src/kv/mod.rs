//! The KV cache of one sequence: pages of [`PAGE_TOKENS`] tokens per layer, shared copy-on-write.
//!
//! What is easy to get wrong: a page that another clone holds too must not be written in place, and what lies in a page
//! beyond the layer's length is stale, not zero; readers stop at [`KvCache::layer_len`].

mod encode;
mod page;
mod rotation;
mod shared;
mod spare;
#[cfg(test)]
mod tests;

pub(crate) use encode::Quantizer;
pub(crate) use page::{
    GROUP_TOKENS, GROUPS, HeadPage, PAGE_TOKENS, PageRow, TOKEN_QUADS, component_rows, value_chunks,
};
pub(crate) use rotation::rotate;

pub use shared::KvPages;

use page::{Layout, Page};
use spare::Spare;
use std::sync::Arc;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// Single precision, as computed.
    F32,
    /// Half precision, rounded to nearest even; magnitudes above 65504 are stored as 65504.
    F16,
    /// Signed bytes with one f32 scale per token and head, for K and for V.
    Q8,
    /// The same in four bits, −7 to 7, of rotated rows (Hadamard): half the bytes.
    Q4,
}

/// Size of one layer's cache entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// G.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
}

/// Keys and values of one sequence. Cloning shares pages (copy on write): beams are cheap.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<Layer>,
    dtype: KvDtype,
}

#[derive(Clone)]
struct Layer {
    layout: Layout,
    spare: Arc<Spare>,
    /// Exactly as many as `len` needs.
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl KvCache {
    /// Empty cache; layers may differ in shape. Panics if a shape has a zero.
    pub fn new(layers: &[KvShape], dtype: KvDtype) -> Self {
        let empty = |shape: &KvShape| {
            let layout = Layout::new(*shape, dtype);
            Layer { layout, spare: layout.spare(), pages: Vec::new(), len: 0 }
        };
        Self { layers: layers.iter().map(empty).collect(), dtype }
    }

    /// Storage format.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Shape of one layer, as given to [`KvCache::new`].
    pub fn shape(&self, layer: usize) -> KvShape {
        self.layers[layer].layout.shape()
    }

    /// Stores K and V (`[T, G, E]` each, K already rotated) of one layer at positions `start..start + T`.
    /// Positions must be contiguous: `start` is at most what that layer holds; what lies at or after is replaced.
    ///
    /// Panics if the lengths disagree, are no whole number of tokens, or leave a gap.
    pub fn write(&mut self, layer: usize, start: usize, k: &[f32], v: &[f32]) {
        let layer = &mut self.layers[layer];
        let KvShape { num_key_value_heads: heads, head_dim } = layer.layout.shape();
        let row = heads * head_dim;
        assert_eq!(k.len(), v.len(), "as many keys as values");
        assert_eq!(k.len() % row, 0, "whole tokens");
        assert!(start <= layer.len, "a gap between position {} and {start}", layer.len);
        let end = start + k.len() / row;
        layer.truncate(end);
        layer.len = end;

        let mut at = start;
        while at < end {
            let (index, token) = (at / PAGE_TOKENS, at % PAGE_TOKENS);
            let count = (PAGE_TOKENS - token).min(end - at);
            if index == layer.pages.len() {
                layer.pages.push(Arc::new(Page::empty(&layer.spare)));
            }
            let rows = (at - start) * row..(at - start + count) * row;
            let page = Arc::make_mut(&mut layer.pages[index]);
            encode::write(page, &layer.layout, token, &k[rows.clone()], &v[rows]);
            at += count;
        }
    }

    /// Positions held by every layer.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).min().unwrap_or(0)
    }

    /// Positions held by one layer: ahead of [`KvCache::len`] while a batch is on its way through the layers.
    pub fn layer_len(&self, layer: usize) -> usize {
        self.layers[layer].len
    }

    /// Nothing held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets positions from `len` on, in every layer.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// Memory that the pages take, those shared with clones included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.pages.len() * layer.layout.page_bytes()).sum()
    }

    /// Memory that one more token will need, all layers together (amortized over a page).
    pub fn bytes_per_token(layers: &[KvShape], dtype: KvDtype) -> usize {
        layers.iter().map(|shape| Layout::new(*shape, dtype).page_bytes() / PAGE_TOKENS).sum()
    }

    /// What one page of one layer holds of one head.
    pub(crate) fn head_page(&self, layer: usize, page: usize, head: usize) -> HeadPage<'_> {
        let layer = &self.layers[layer];
        layer.layout.head(&layer.pages[page], head)
    }
}

impl Layer {
    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE_TOKENS));
    }
}
