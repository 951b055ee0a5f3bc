//! The order of a head's rotary components.

/// Which two components of a head of E rotate together, R of them in all (arXiv:2104.09864). A storage convention: Q and
/// K rows written in one order and rotated in the other give another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// (i, i + R/2): Hugging Face's "rotate half", GGUF's NEOX.
    Halves,
    /// (2i, 2i + 1): GGUF's NORM, GPT-J.
    Interleaved,
}
