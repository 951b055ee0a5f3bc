//! The KV cache of one sequence: pages of a fixed number of tokens per layer.

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum KvDtype {
    F32,
    F16,
    Q8,
}

/// Size of one layer's cache entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// G.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
}

/// Keys and values of one sequence. Cloning shares full pages (copy on write): beams are cheap.
#[derive(Clone)]
pub struct KvCache {
    _private: (),
}

impl KvCache {
    /// Empty cache; layers may differ in shape.
    pub fn new(layers: &[KvShape], dtype: KvDtype) -> Self {
        let _ = (layers, dtype);
        todo!()
    }
    /// Storage format.
    pub fn dtype(&self) -> KvDtype {
        todo!()
    }
    /// Stores K and V (`[T, G, E]` each, K already rotated) of one layer at positions `start..start + T`.
    /// Positions must be contiguous: `start` is at most what that layer holds; what lies at or after is replaced.
    pub fn write(&mut self, layer: usize, start: usize, k: &[f32], v: &[f32]) {
        let _ = (layer, start, k, v);
        todo!()
    }
    /// Positions held by every layer.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Nothing held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets positions from `len` on, in every layer.
    pub fn truncate(&mut self, len: usize) {
        let _ = len;
        todo!()
    }
    /// Memory held now.
    pub fn bytes(&self) -> usize {
        todo!()
    }
    /// Memory that one more token will need, all layers together (amortized over a page).
    pub fn bytes_per_token(layers: &[KvShape], dtype: KvDtype) -> usize {
        let _ = (layers, dtype);
        todo!()
    }
}
