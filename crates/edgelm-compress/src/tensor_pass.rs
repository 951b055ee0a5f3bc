//! One tensor: rows in, blocks out. Pure: no files, no model.

use edgelm_tensor::{
    DType, TensorError,
    block::{decode_row, encode_row},
};
use rayon::prelude::*;

/// What encoding cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Distortion {
    /// Σ (value − decoded)².
    pub error: f64,
    /// Σ value².
    pub energy: f64,
}

impl Distortion {
    /// Of values that became others.
    pub fn between(was: &[f32], is: &[f32]) -> Self {
        let square = |value: f32| f64::from(value) * f64::from(value);
        Self {
            error: was.iter().zip(is).map(|(was, is)| square(was - is)).sum(),
            energy: was.iter().map(|&was| square(was)).sum(),
        }
    }

    /// Root of error over energy: the relative root-mean-square error.
    pub fn relative_rms(&self) -> f64 {
        if self.energy > 0.0 { (self.error / self.energy).sqrt() } else { 0.0 }
    }
}

/// Re-encodes rows. `sources[i]` is the stored form of row i; rows are appended to `out` in that order.
///
/// A row that is already in the wanted format is copied byte for byte: encoding it again could only lose.
/// `importance` `[K]` weighs the squared error of each column. Rows are independent, so the result does not depend on
/// the number of threads.
pub(crate) fn encode_rows(
    from: DType,
    to: DType,
    sources: &[&[u8]],
    row_len: usize,
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<Distortion, TensorError> {
    if from == to {
        sources.iter().for_each(|row| out.extend_from_slice(row));
        return Ok(Distortion::default());
    }
    let row_bytes = to.row_bytes(row_len)?;
    let begin = out.len();
    out.resize(begin + sources.len() * row_bytes, 0);
    let rows = out[begin..].par_chunks_mut(row_bytes.max(1)).zip(sources.par_iter());
    rows.map_init(
        || (vec![0.0; row_len], vec![0.0; row_len]),
        |(values, decoded), (out, source)| {
            decode_row(from, source, values)?;
            encode_row(to, values, importance, out)?;
            decode_row(to, out, decoded)?;
            Ok(Distortion::between(values, decoded))
        },
    )
    // Collected first: a sum in the order of the rows is the same for every number of threads.
    .collect::<Result<Vec<_>, TensorError>>()
    .map(|rows| {
        rows.iter().fold(Distortion::default(), |sum, row| Distortion {
            error: sum.error + row.error,
            energy: sum.energy + row.energy,
        })
    })
}

/// Adds `offset` to values of f32. Gains of norms are the only ones that have one, and are f32 in GGUF files.
pub(crate) fn offset_f32(bytes: &mut [u8], offset: f32) {
    if offset == 0.0 {
        return;
    }
    for value in bytes.as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) + offset).to_le_bytes();
    }
}
