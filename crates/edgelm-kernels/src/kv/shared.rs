//! What sequences share of their caches: a page of every layer, holding the same positions.

use super::{KvCache, KvDtype, KvShape, Layout, PAGE_TOKENS, page::Page};
use std::sync::Arc;

/// The same page of every layer of a cache: up to [`KvCache::PAGE_TOKENS`] positions. Cloning shares.
#[derive(Clone)]
pub struct KvPages(Vec<Arc<Page>>);

impl KvPages {
    /// Whether a cache, or another clone, holds these pages too. Never for a model without attention, which has none.
    pub fn is_shared(&self) -> bool {
        self.0.iter().any(|page| Arc::strong_count(page) > 1)
    }

    /// The bytes of each layer's page, in the byte order of this machine: what [`KvPages::from_bytes`] takes, one behind the
    /// other.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|page| page.as_bytes())
    }

    /// Pages for caches of these layers and this format, from what [`KvPages::parts`] gave. None where the length is another.
    pub fn from_bytes(layers: &[KvShape], dtype: KvDtype, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut pages = Vec::with_capacity(layers.len());
        for shape in layers {
            let mut page = Page::empty(&Layout::new(*shape, dtype).spare());
            let part;
            (part, rest) = rest.split_at_checked(page.bytes())?;
            page.as_bytes_mut().copy_from_slice(part);
            pages.push(Arc::new(page));
        }
        rest.is_empty().then_some(Self(pages))
    }
}

impl KvCache {
    /// Positions of a page.
    pub const PAGE_TOKENS: usize = PAGE_TOKENS;

    /// Memory that a page of every layer takes.
    pub fn page_bytes(layers: &[KvShape], dtype: KvDtype) -> usize {
        layers.iter().map(|shape| Layout::new(*shape, dtype).page_bytes()).sum()
    }

    /// The page of every layer that begins at position `index · PAGE_TOKENS`, shared copy-on-write: what is appended to this
    /// cache later does not show in it.
    ///
    /// Panics if a layer has no such page.
    pub fn share_page(&self, index: usize) -> KvPages {
        KvPages(self.layers.iter().map(|layer| Arc::clone(&layer.pages[index])).collect())
    }

    /// Appends the first `tokens` positions of pages of a cache with the same layers and format.
    ///
    /// Panics if this cache ends inside a page, if `tokens` is 0 or more than a page holds, or if the pages are those of
    /// another number or size of layers.
    pub fn append_shared(&mut self, pages: &KvPages, tokens: usize) {
        assert!((1..=PAGE_TOKENS).contains(&tokens), "{tokens} of the {PAGE_TOKENS} tokens of a page");
        assert_eq!(pages.0.len(), self.layers.len(), "a page per layer");
        for (layer, page) in self.layers.iter_mut().zip(&pages.0) {
            assert_eq!(layer.len % PAGE_TOKENS, 0, "the cache ends inside a page");
            assert_eq!(page.bytes(), layer.layout.page_bytes(), "pages of another model or format");
            layer.pages.push(Arc::clone(page));
            layer.len += tokens;
        }
    }
}
