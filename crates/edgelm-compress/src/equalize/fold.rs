//! Scales of input channels into a model that computes the same with them.

use super::Source;
use crate::{CompressError, layer_pass::decode};
use edgelm_model::{Edited, LayerTensor, Replaced, TensorId, Tensors};
use rayon::prelude::*;

/// W[n, k] · s[channels[k]] for the readers, and 1 / s[c] for the gain or row c, with its bias, of `source`.
///
/// Shapes: `channels` [K] of the readers; `scales` [C], the gain's length or the rows of the source, all finite and more
/// than 0. What changes becomes f32. Panics if lengths disagree.
pub(crate) fn fold(
    edited: &mut Edited<'_>,
    layer: usize,
    readers: &[LayerTensor],
    source: Source,
    channels: &[usize],
    scales: &[f32],
) -> Result<(), CompressError> {
    let columns: Vec<f32> = channels.iter().map(|&channel| scales[channel]).collect();
    for &reader in readers {
        change(edited, TensorId::Layer(layer, reader), |values| {
            let rows = values.par_chunks_mut(columns.len());
            rows.for_each(|row| row.iter_mut().zip(&columns).for_each(|(value, scale)| *value *= scale));
        })?;
    }
    let divide = |values: &mut [f32]| {
        assert_eq!(values.len() % scales.len(), 0);
        let width = values.len() / scales.len();
        let rows = values.par_chunks_mut(width.max(1)).zip(scales);
        rows.for_each(|(row, scale)| row.iter_mut().for_each(|value| *value /= scale));
    };
    match source {
        Source::Gain(gain) => change(edited, TensorId::Layer(layer, gain), divide),
        Source::Rows(matrix) => {
            change(edited, TensorId::Layer(layer, matrix), divide)?;
            let bias = matrix.bias().map(|bias| TensorId::Layer(layer, bias));
            bias.filter(|&bias| edited.has(bias)).map_or(Ok(()), |bias| change(edited, bias, divide))
        }
    }
}

fn change(edited: &mut Edited<'_>, id: TensorId, by: impl FnOnce(&mut [f32])) -> Result<(), CompressError> {
    let mut values = decode(edited, id)?;
    by(&mut values);
    let shape = edited.describe(id)?.1.to_vec();
    edited.replace(id, Replaced::f32(shape, &values));
    Ok(())
}
