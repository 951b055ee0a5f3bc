//! Matrices that files hold as codes with scales, whatever the layout: what can be asked of one.

use crate::{IntLayout, Ints};
use edgelm_tensor::DType;
use std::ops::Range;

/// A matrix `[N, K]` of codes and scales whose parts were checked, borrowed from the file; or several, seen as one.
pub trait CodedMatrix {
    /// `[N, K]`, N all rows.
    fn shape(&self) -> [usize; 2];

    /// `[…, N, K]`.
    fn full_shape(&self) -> Vec<usize> {
        self.shape().to_vec()
    }

    /// The format of [`Self::blocks`].
    fn dtype(&self) -> DType;

    /// Rows as blocks of [`Self::dtype`], in which they are run. What that rounds, each format's documentation says. Panics if
    /// there are no such rows.
    fn blocks(&self, rows: Range<usize>) -> Vec<u8>;

    /// Rows as the values that the file means, in f32. Panics if there are no such rows, or if `out` is not
    /// `[rows, K]`.
    fn values(&self, rows: Range<usize>, out: &mut [f32]);

    /// The format of [`Self::reordered`], where there is one.
    fn reordered_dtype(&self) -> Option<DType> {
        None
    }

    /// The whole matrix with its columns in an order that lets a smaller format than [`Self::dtype`] hold it, where there is one.
    fn reordered(&self) -> Option<Reordered> {
        None
    }

    /// How the matrix looks as whole numbers with scales, where its codes are such.
    fn int_layout(&self) -> Option<IntLayout> {
        None
    }

    /// Appends rows as [`Self::int_layout`] says; nothing where it says nothing. Panics if there are no such rows.
    fn ints(&self, _rows: Range<usize>, _out: &mut Ints) {}

    /// The scale of its int8 inputs, where it is fixed.
    fn input_scale(&self) -> Option<f32> {
        None
    }

    /// Lets the kernel drop the pages it was read from.
    fn release(&self);
}

/// A matrix with its columns in another order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reordered {
    /// Column j is column `order[j]` of the matrix: a permutation of 0 .. K.
    pub order: Vec<u32>,
    /// The format of `bytes`.
    pub dtype: DType,
    /// All rows.
    pub bytes: Vec<u8>,
}
