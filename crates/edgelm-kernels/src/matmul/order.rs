//! Matrices whose columns stand in another order than their input.

use super::{Linear, Scratch};
use std::sync::Arc;

/// Which value of the input each column meets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Order(Arc<[u32]>);

impl Order {
    /// Panics if it is not a permutation of 0 .. K.
    pub(super) fn new(order: Vec<u32>) -> Self {
        let mut seen = vec![false; order.len()];
        for &k in &order {
            assert!(!std::mem::replace(&mut seen[k as usize], true), "column {k} occurs twice in the order");
        }
        Self(order.into())
    }
}

/// A product of some x `[M, K]` with a group.
pub(super) type Product<'a> = dyn Fn(&[f32], &mut [Linear<'_>], &mut Scratch) + 'a;

/// Calls `product(x, group)` for every run of matrices of one order, with the columns of x `[M, K]` in that order.
pub(super) fn in_order(x: &[f32], group: &mut [Linear<'_>], scratch: &mut Scratch, product: &Product<'_>) {
    for part in group.chunk_by_mut(|a, b| a.weight.order == b.weight.order) {
        let Some(Order(order)) = part.first().and_then(|linear| linear.weight.order.clone()) else {
            product(x, part, scratch);
            continue;
        };
        let mut ordered = std::mem::take(&mut scratch.ordered);
        ordered.clear();
        for row in x.chunks_exact(order.len().max(1)) {
            ordered.extend(order.iter().map(|&k| row[k as usize]));
        }
        product(&ordered, part, scratch);
        scratch.ordered = ordered;
    }
}
