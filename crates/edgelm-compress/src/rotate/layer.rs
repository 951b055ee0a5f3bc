//! What becomes of a decoder layer's tensors when the residual stream and the values of its heads are turned.

use super::{Parts, hadamard::Rotation};
use crate::{CompressError, layer_pass::decode};
use edgelm_model::{Edited, LayerTensor, Replaced, TensorId, Tensors};
use rayon::prelude::*;

/// Replaces the tensors of layer `index`, as f32, by those that compute the same with a stream of x·Q instead of x, Q being
/// `stream`: norms of gain 1 (|x·Q| = |x|), W·diag(gain)·Q for what reads the stream, Qᵀ·W for what writes it. The values of KV
/// head g become v·R_g, which its rows of O take back: R_gᵀ·V_g and O_h·R_g for the query heads h that read it.
///
/// Source: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456), section 4; R1 and R2 of SpinQuant (arXiv:2405.16406).
pub(crate) fn turn_layer(
    edited: &mut Edited<'_>,
    index: usize,
    stream: &Rotation,
    parts: Parts,
    seed: u64,
) -> Result<(), CompressError> {
    use LayerTensor::{AttnNorm, Down, DownBias, FfnNorm, Gate, K, O, OBias, Q, Up, V, VBias};
    if parts == Parts::All {
        for (norm, readers) in [(AttnNorm, &[Q, K, V][..]), (FfnNorm, &[Gate, Up][..])] {
            let gain = decode(edited, TensorId::Layer(index, norm))?;
            for &reader in readers {
                change(edited, index, reader, |values| read_turned(values, &gain, stream))?;
            }
            change(edited, index, norm, |values| values.fill(1.0))?;
        }
        for (tensor, is_matrix) in [(O, true), (OBias, false), (Down, true), (DownBias, false)] {
            change(edited, index, tensor, |values| match is_matrix {
                true => stream.turn_columns(values),
                false => stream.turn_rows(values),
            })?;
        }
    }
    let config = edited.config().layers[index].clone();
    let (e, groups) = (config.head_dim, config.num_key_value_heads);
    // Seeds of heads lie apart from each other and from the stream's.
    let head_seed = |group: usize| seed.wrapping_add(1 + (index * groups + group) as u64);
    let turns: Vec<Rotation> = (0..groups).map(|group| Rotation::new(e, head_seed(group))).collect();
    change(edited, index, V, |values| {
        let of_group = values.len() / groups.max(1);
        values.chunks_exact_mut(of_group.max(1)).zip(&turns).for_each(|(values, turn)| turn.turn_columns(values));
    })?;
    change(edited, index, VBias, |values| {
        values.chunks_exact_mut(e.max(1)).zip(&turns).for_each(|(values, turn)| turn.turn_rows(values));
    })?;
    change(edited, index, O, |values| {
        let width = config.num_attention_heads / groups.max(1) * e;
        values.par_chunks_exact_mut((width * groups).max(1)).for_each(|row| {
            row.chunks_exact_mut(width.max(1)).zip(&turns).for_each(|(row, turn)| turn.turn_rows(row));
        });
    })
}

/// W·diag(gain)·Q for rows W `[N, D]`.
pub(super) fn read_turned(values: &mut [f32], gain: &[f32], stream: &Rotation) {
    let rows = values.par_chunks_exact_mut(gain.len().max(1));
    rows.for_each(|row| row.iter_mut().zip(gain).for_each(|(value, gain)| *value *= gain));
    stream.turn_rows(values);
}

/// Replaces a tensor, if the layer has it.
fn change(
    edited: &mut Edited<'_>,
    index: usize,
    tensor: LayerTensor,
    by: impl FnOnce(&mut [f32]),
) -> Result<(), CompressError> {
    let id = TensorId::Layer(index, tensor);
    if !edited.has(id) {
        return Ok(());
    }
    let mut values = decode(edited, id)?;
    by(&mut values);
    let shape = edited.describe(id)?.1.to_vec();
    edited.replace(id, Replaced::f32(shape, &values));
    Ok(())
}
