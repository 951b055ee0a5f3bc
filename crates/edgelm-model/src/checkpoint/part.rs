//! A tensor of the model out of the one it is stored in.

use crate::arch::{Rows, Stored};
use edgelm_format::TensorView;
use std::borrow::Cow;

/// The part of a stored tensor that `stored` names, with the model's shape. A run of rows is not copied.
pub(super) fn of<'a>(view: TensorView<'a>, stored: &Stored, shape: &'a [usize]) -> TensorView<'a> {
    if stored.rows.is_none() && !stored.transposed {
        return TensorView { shape, ..view };
    }
    let dtype = view.dtype;
    if stored.transposed {
        let (inputs, outputs) = (stored.shape[0], stored.shape[1]);
        let bytes = transposed(&view.bytes, inputs, outputs, stored.rows.as_ref());
        return TensorView { dtype, shape, bytes: Cow::Owned(bytes) };
    }
    let row_bytes = view.bytes.len() / stored.shape[0].max(1);
    let bytes = match (&stored.rows, view.bytes) {
        (Some(Rows::Range(rows)), Cow::Borrowed(bytes)) => {
            Cow::Borrowed(&bytes[rows.start * row_bytes..rows.end * row_bytes])
        }
        (Some(Rows::Range(rows)), Cow::Owned(bytes)) => {
            Cow::Owned(bytes[rows.start * row_bytes..rows.end * row_bytes].to_vec())
        }
        (Some(Rows::List(rows)), bytes) => {
            Cow::Owned(rows.iter().flat_map(|&row| &bytes[row * row_bytes..][..row_bytes]).copied().collect())
        }
        (None, bytes) => bytes,
    };
    TensorView { dtype, shape, bytes }
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
