//! A tensor of the model out of the one it is stored in.

use crate::arch::{Rows, Stored};
use edgelm_format::TensorView;
use std::{borrow::Cow, ops::Range};

/// The part of a stored tensor that `stored` names, with the model's shape. A run of rows is not copied.
pub(super) fn of<'a>(view: TensorView<'a>, stored: &Stored, shape: &'a [usize]) -> TensorView<'a> {
    let dtype = view.dtype;
    let (bytes, of_one) = match stored.expert {
        Some((expert, count)) => {
            let size = view.bytes.len() / count.max(1);
            (cut(view.bytes, expert * size..(expert + 1) * size), &stored.shape[1..])
        }
        None => (view.bytes, stored.shape.as_slice()),
    };
    if stored.transposed {
        let bytes = transposed(&bytes, of_one[0], of_one[1], stored.rows.as_ref());
        return TensorView { dtype, shape, bytes: Cow::Owned(bytes) };
    }
    let row_bytes = bytes.len() / of_one.first().copied().unwrap_or(1).max(1);
    let bytes = match (&stored.rows, bytes) {
        (Some(Rows::Range(rows)), bytes) => cut(bytes, rows.start * row_bytes..rows.end * row_bytes),
        (Some(Rows::List(rows)), bytes) => {
            Cow::Owned(rows.iter().flat_map(|&row| &bytes[row * row_bytes..][..row_bytes]).copied().collect())
        }
        (None, bytes) => bytes,
    };
    TensorView { dtype, shape, bytes }
}

fn cut(bytes: Cow<'_, [u8]>, range: Range<usize>) -> Cow<'_, [u8]> {
    match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
        Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
    }
}

/// Columns of a matrix [inputs, outputs] as rows.
fn transposed(bytes: &[u8], inputs: usize, outputs: usize, columns: Option<&Rows>) -> Vec<u8> {
    let size = bytes.len() / (inputs * outputs).max(1);
    let all = Rows::Range(0..outputs);
    let columns: Vec<usize> = match columns.unwrap_or(&all) {
        Rows::Range(range) => range.clone().collect(),
        Rows::List(list) => list.clone(),
    };
    let value = |input: usize, column: usize| &bytes[(input * outputs + column) * size..][..size];
    columns.iter().flat_map(|&column| (0..inputs).flat_map(move |input| value(input, column))).copied().collect()
}
