//! One decoder layer after another: each group of matrices is quantized on the inputs that the groups before it,
//! quantized, produce; with a parent that walks beside, for the outputs that the parent has there.

use crate::{
    CompressError,
    drift::{Correction, Drift},
    feedback::{Fed, FeedbackOptions},
    matrix_format::MatrixFormat,
    moments::Moments,
    ranges::{Calibrator, Histogram},
    tensor_pass::Distortion,
    walk::Walk,
};
use edgelm_engine::Block;
use edgelm_model::{
    Edited, ExpertTensor, LayerTensor, ModelConfig, Multipliers, Replaced, Residual, TensorId, Tensors,
};
use edgelm_tensor::{DType, TensorError, block::decode_row};
use rayon::prelude::*;
use std::{collections::HashMap, ops::ControlFlow};

/// Matrices that share an input, in the order of the layer, in layers as Llama has them.
pub(crate) const GROUPS: [&[LayerTensor]; 4] = {
    use LayerTensor::*;
    [&[Q, K, V], &[O], &[Gate, Up], &[Down]]
};

/// The groups of matrices that share an input which a layer has, in its order.
pub(crate) fn groups_of(config: &ModelConfig, layer: usize) -> Vec<Vec<LayerTensor>> {
    use LayerTensor::*;
    let is_there = |tensor: &LayerTensor| config.tensor_shape(TensorId::Layer(layer, *tensor)).is_some();
    let count = config.layers[layer].experts.map_or(0, |experts| experts.count);
    let of = |expert: usize| {
        let part = |part| Expert(expert as u16, part);
        [vec![part(ExpertTensor::Gate), part(ExpertTensor::Up)], vec![part(ExpertTensor::Down)]]
    };
    // A mixer that stands beside attention goes first.
    let mixers = [vec![MixerIn, MixerGate], vec![MixerOut], vec![Q, K, V, QGate], vec![O]];
    let dense = [vec![Gate, Up], vec![Down]];
    let shared = [vec![SharedGate, SharedUp], vec![SharedDown]];
    // As a layer goes through them: experts one after another, the shared one last.
    let groups = mixers.into_iter().chain(dense).chain((0..count).flat_map(of)).chain(shared);
    groups
        .map(|group| group.into_iter().filter(is_there).collect())
        .filter(|group: &Vec<_>| !group.is_empty())
        .collect()
}

/// The outputs of this matrix are added to the hidden states as they are, and are all that is added there.
pub(crate) fn joins_stream(config: &ModelConfig, layer: usize, tensor: LayerTensor) -> bool {
    let style = &config.style;
    let has = |tensor| config.tensor_shape(TensorId::Layer(layer, tensor)).is_some();
    let is_plain =
        style.residual == Residual::Sequential && style.residual_scale == 1.0 && style.multipliers == Multipliers::NONE;
    let is_alone = match tensor {
        LayerTensor::O => !style.norms.post_attn && !has(LayerTensor::MixerOut),
        LayerTensor::MixerOut => !style.norms.post_attn && !has(LayerTensor::O),
        LayerTensor::Down => !style.norms.post_ffn && config.layers[layer].experts.is_none(),
        _ => false,
    };
    is_plain && is_alone
}

/// How the codes of a matrix are chosen, given the second moments of its inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Codes {
    /// Scales and codes of least error, weighted by the mean squares of the inputs.
    Weighted,
    /// One after another, each making up for the errors of those before it (GPTQ), and all of them for those of the layers
    /// before. For the latter the parent walks beside: twice the calibration activations, a layer more in memory, twice the
    /// time to run layers.
    Feedback(FeedbackOptions),
}

/// What quantization did to a matrix, as parts of what there was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MatrixErrors {
    /// Root of tr(ΔW · H · ΔWᵀ) / tr(W · H · Wᵀ), with W corrected for the drift of its inputs.
    pub output: f64,
    /// Root of Σ Δw² / Σ w².
    pub weights: f64,
}

/// Quantizes the next layer of `walk` to the formats of `choose`, puts the results into `edited`, and moves the walk on, and
/// with it `parent`, whose layer is the one in `edited` as it is now.
pub(crate) fn quantize_layer(
    walk: &mut Walk<'_>,
    parent: Option<&mut Walk<'_>>,
    edited: &mut Edited<'_>,
    choose: &dyn Fn(TensorId) -> MatrixFormat,
    codes: &Codes,
    static_inputs: Option<Calibrator>,
    on_group: &mut dyn FnMut() -> Result<(), CompressError>,
) -> Result<HashMap<TensorId, MatrixErrors>, CompressError> {
    let mut errors = HashMap::new();
    let parent = match parent {
        Some(parent) => Some((Block::load(edited, walk.cpu(), walk.layer())?, parent)),
        None => None,
    };
    for group in groups_of(edited.config(), walk.layer()) {
        on_group()?;
        let ids: Vec<TensorId> = group.iter().map(|&tensor| TensorId::Layer(walk.layer(), tensor)).collect();
        let wants = |id: &TensorId| -> Result<bool, CompressError> {
            Ok(choose(*id).is_quantized() && !choose(*id).is_that_of(edited.describe(*id)?.0))
        };
        if !ids.iter().map(wants).collect::<Result<Vec<_>, _>>()?.contains(&true) {
            continue;
        }
        let mut moments = Moments::new(edited.describe(ids[0])?.1.last().copied().unwrap_or_default());
        let mut magnitudes = static_inputs.map(|_| Histogram::default());
        // The parent may send other tokens to an expert: there is nothing to compare.
        let follows = parent.as_ref().filter(|_| !matches!(group[0], LayerTensor::Expert(..)));
        let mut drift = follows.map(|_| {
            let drift = Drift::new(moments.columns());
            match joins_stream(edited.config(), walk.layer(), group[0]) {
                true => drift.with_stream(edited.config().hidden_size),
                false => drift,
            }
        });
        let mut see = |x: &[f32], rows| {
            moments.add(x, rows);
            magnitudes.iter_mut().for_each(|magnitudes| magnitudes.add(x));
        };
        match (&parent, &mut drift) {
            (Some((block, parent)), Some(drift)) => {
                walk.inputs_beside(edited, parent, block, group[0], |theirs, ours| {
                    see(&ours.x, ours.rows);
                    drift.add(theirs, ours);
                })?
            }
            _ => walk.inputs(edited, group[0], see)?,
        }
        let input_scale = match (static_inputs, magnitudes) {
            (Some(_), Some(magnitudes)) if !magnitudes.largest().is_finite() => {
                return Err(CompressError::NotFinite { what: format!("an input of layer {}", walk.layer()) });
            }
            // None where all inputs are zero.
            (Some(calibrator), Some(magnitudes)) => magnitudes.scale(calibrator),
            _ => None,
        };
        let correction = drift.map(|drift| drift.correction(&moments)).transpose()?;
        for id in ids {
            if let (Some(scale), true) = (input_scale, choose(id).is_quantized()) {
                edited.fix_input_scale(id, scale);
            }
            if let Some(error) = quantize_matrix(edited, id, choose(id), &moments, correction.as_ref(), codes)? {
                errors.insert(id, error);
            }
        }
    }
    if let Some((block, parent)) = parent {
        parent.go_through(&block, &mut |_, _, _| ControlFlow::Continue(()))?;
    }
    walk.advance(edited)?;
    Ok(errors)
}

/// Quantizes one matrix in place, after `correction`. `None` where it is already in that format, or the format has no codes to choose.
pub(crate) fn quantize_matrix(
    edited: &mut Edited<'_>,
    id: TensorId,
    format: MatrixFormat,
    moments: &Moments,
    correction: Option<&Correction>,
    codes: &Codes,
) -> Result<Option<MatrixErrors>, CompressError> {
    if !format.is_quantized() || format.is_that_of(edited.describe(id)?.0) {
        return Ok(None);
    }
    let named = |source: CompressError| CompressError::InTensor {
        name: edited.base().stored_name(id),
        source: Box::new(source),
    };
    let weights = decode(edited, id)?;
    let corrected = correction.map(|correction| correction.apply(&weights));
    let wanted = corrected.as_deref().unwrap_or(&weights);
    let fed = choose_codes(format, wanted, moments, codes).map_err(named)?;
    let energy = moments.output_error(wanted);
    drop(corrected);
    let shape = edited.describe(id)?.1.to_vec();
    edited.replace(id, Replaced { dtype: format.dtype(), shape, bytes: fed.bytes });
    let decoded = decode(edited, id)?;
    let distortion = Distortion::between(&weights, &decoded);
    let output = if energy > 0.0 { (fed.output_error / energy).sqrt() } else { 0.0 };
    Ok(Some(MatrixErrors { output, weights: distortion.relative_rms() }))
}

/// The blocks of `weights` `[N, K]`, and what they cost. Pure.
pub(crate) fn choose_codes(
    format: MatrixFormat,
    weights: &[f32],
    moments: &Moments,
    codes: &Codes,
) -> Result<Fed, CompressError> {
    match codes {
        Codes::Feedback(options) => format.feed_back(weights, moments, options),
        Codes::Weighted => {
            let columns = moments.columns();
            let bytes = format.encode(weights, columns, Some(&moments.mean_squares()))?;
            let mut difference = decode_blocks(format.dtype(), &bytes, columns, weights.len())?;
            difference.iter_mut().zip(weights).for_each(|(value, was)| *value -= was);
            Ok(Fed { bytes, output_error: moments.output_error(&difference) })
        }
    }
}

/// All values of a tensor.
pub(crate) fn decode(tensors: &dyn Tensors, id: TensorId) -> Result<Vec<f32>, CompressError> {
    let view = tensors.tensor(id)?;
    Ok(decode_blocks(view.dtype, &view.bytes, view.row_len(), view.elements())?)
}

/// Rows of `row_len` values out of their blocks, `count` values in all.
pub(crate) fn decode_blocks(dtype: DType, bytes: &[u8], row_len: usize, count: usize) -> Result<Vec<f32>, TensorError> {
    let row_bytes = dtype.row_bytes(row_len)?;
    let mut values = vec![0.0; count];
    if row_len > 0 {
        let rows = values.par_chunks_mut(row_len).zip(bytes.par_chunks(row_bytes));
        rows.try_for_each(|(values, bytes)| decode_row(dtype, bytes, values))?;
    }
    Ok(values)
}
