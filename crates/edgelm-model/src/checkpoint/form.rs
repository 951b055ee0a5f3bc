//! A checkpoint seen as GGUF files of its family hold it: tensors that other numbers become, or other places, on the way.
//!
//! The one thing a reader would get wrong: nothing is converted before it is asked for, and what is converted is no longer
//! stored as it was: floats keep their format and are rounded to it once, codes become F16, unless whole rows only move.

use super::{Checkpoint, verify};
use crate::{Decay, LatentAttention, LayerConfig, LayerTensor, Mixer, ModelConfig, ModelError, TensorId, ValueOrder};
use edgelm_format::TensorView;
use edgelm_tensor::{DType, block::encode_row};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// What a checkpoint is shown as.
pub(super) struct Form {
    /// What the files hold.
    source: ModelConfig,
    /// Of its tensors.
    shapes: HashMap<TensorId, Vec<usize>>,
}

/// What becomes of a tensor.
enum Change {
    /// Row r is row `.0[r]` of the files'.
    Rows(Vec<usize>),
    /// Column c is column `.0[c]`.
    Columns(Vec<usize>),
    /// Row r is multiplied by the factor of the range it is in; the ranges follow each other.
    Factors(Vec<(usize, f32)>),
    /// Each of so many parts of the rows is transposed.
    Transposed(usize),
    /// A for log(−A).
    Rates,
    /// The same, with rows as in `Rows`.
    MovedRates(Vec<usize>),
}

impl Checkpoint {
    /// This model as a GGUF file of its family holds it: [`ModelConfig::gguf_form`] with tensors to match. The files are shared,
    /// nothing is read.
    pub fn gguf_form(&self) -> Checkpoint {
        let config = match self.config.arch.gguf_name {
            Some(_) => self.config.gguf_form(),
            None => self.config.clone(),
        };
        let is_shown = config != self.config || self.form.is_some();
        let form = is_shown.then(|| Form { source: self.source().clone(), shapes: self.file_shapes().clone() });
        let ids = config.tensor_ids();
        Checkpoint {
            path: self.path.clone(),
            name: self.name.clone(),
            generation: self.generation.clone(),
            store: Arc::clone(&self.store),
            shapes: verify::shapes(&config, &ids),
            ids,
            prefix: self.prefix,
            texts: Arc::clone(&self.texts),
            form,
            config,
        }
    }

    /// What the files hold.
    pub(super) fn source(&self) -> &ModelConfig {
        self.form.as_ref().map_or(&self.config, |form| &form.source)
    }

    /// Shapes of what the files hold.
    pub(super) fn file_shapes(&self) -> &HashMap<TensorId, Vec<usize>> {
        self.form.as_ref().map_or(&self.shapes, |form| &form.shapes)
    }

    /// The tensor of the files that a tensor is made of: a head that is tied there is the embedding.
    pub(super) fn source_id(&self, id: TensorId) -> TensorId {
        let is_untied = self.source().tie_word_embeddings && !self.config.tie_word_embeddings;
        if is_untied && id == TensorId::Output { TensorId::TokenEmbedding } else { id }
    }

    /// What becomes of a tensor of the files, if anything.
    fn change(&self, id: TensorId) -> Option<Change> {
        change(&self.form.as_ref()?.source, &self.config, id)
    }

    /// True for a tensor that is not what the files hold.
    pub(crate) fn is_changed(&self, id: TensorId) -> bool {
        self.change(id).is_some()
    }

    /// Format of a tensor that is made out of one that the files have in this one.
    pub(super) fn changed_dtype(&self, id: TensorId, dtype: DType) -> DType {
        match self.change(id) {
            None | Some(Change::Rows(_)) => dtype,
            Some(_) if dtype.is_quantized() => DType::F16,
            Some(_) => dtype,
        }
    }

    /// A tensor that is not what the files hold; `None` for others.
    pub(super) fn changed(&self, id: TensorId) -> Result<Option<TensorView<'_>>, ModelError> {
        let (Some(change), Some(shape)) = (self.change(id), self.shapes.get(&id)) else { return Ok(None) };
        let dtype = self.describe(id)?.0;
        if let Change::Rows(order) = &change {
            let view = self.of_files(self.source_id(id))?;
            let size = view.bytes.len() / order.len().max(1);
            let bytes: Vec<u8> = order.iter().flat_map(|&row| &view.bytes[row * size..][..size]).copied().collect();
            return Ok(Some(TensorView { dtype, shape, bytes: bytes.into() }));
        }
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.iter().product::<usize>() / columns;
        let mut values = vec![0.0; rows * columns];
        self.change_values(id, &change, 0..rows, &mut values)?;
        let row_bytes = dtype.row_bytes(columns)?;
        let mut bytes = vec![0; rows * row_bytes];
        for (values, bytes) in values.chunks_exact(columns).zip(bytes.chunks_exact_mut(row_bytes.max(1))) {
            encode_row(dtype, values, None, bytes)?;
        }
        Ok(Some(TensorView { dtype, shape, bytes: bytes.into() }))
    }

    /// Rows of a tensor that is not what the files hold; false for others.
    pub(super) fn changed_values(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<bool, ModelError> {
        match self.change(id) {
            Some(change) => self.change_values(id, &change, rows, out).map(|()| true),
            None => Ok(false),
        }
    }

    /// `rows` and `out` fit the tensor; a vector is one row.
    fn change_values(
        &self,
        id: TensorId,
        change: &Change,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let (id, shape) = (self.source_id(id), self.shapes.get(&id).map_or(&[][..], Vec::as_slice));
        if let [_] = shape {
            return self.values_of_files(id, rows, out).map(|()| change_vector(change, out));
        }
        let columns = shape.last().copied().unwrap_or(1).max(1);
        match change {
            Change::Rows(order) => {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    self.values_of_files(id, order[row]..order[row] + 1, out)?;
                }
            }
            Change::Columns(order) => {
                let mut whole = vec![0.0; columns];
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    self.values_of_files(id, row..row + 1, &mut whole)?;
                    out.iter_mut().zip(order).for_each(|(out, &from)| *out = whole[from]);
                }
            }
            Change::Factors(factors) => {
                self.values_of_files(id, rows.clone(), out)?;
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    out.iter_mut().for_each(|value| *value *= factor_of(factors, row));
                }
            }
            Change::Transposed(parts) => {
                // Of the files' [n, c] each part becomes [c, n].
                let (height, n) = (shape[0] / parts.max(&1), columns);
                let mut whole = vec![0.0; n * height];
                let mut loaded = None;
                for (row, out) in rows.zip(out.chunks_exact_mut(n)) {
                    let part = row / height.max(1);
                    if loaded != Some(part) {
                        self.values_of_files(id, part * n..(part + 1) * n, &mut whole)?;
                        loaded = Some(part);
                    }
                    let column = whole.iter().skip(row % height).step_by(height);
                    out.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
                }
            }
            // Of vectors alone.
            Change::Rates | Change::MovedRates(_) => self.values_of_files(id, rows, out)?,
        }
        Ok(())
    }
}

fn change_vector(change: &Change, values: &mut [f32]) {
    let mut moved = |order: &[usize]| {
        let whole = values.to_vec();
        values.iter_mut().zip(order).for_each(|(value, &from)| *value = whole[from]);
    };
    match change {
        Change::Rows(order) | Change::MovedRates(order) => moved(order),
        Change::Factors(factors) => {
            values.iter_mut().enumerate().for_each(|(row, value)| *value *= factor_of(factors, row));
        }
        Change::Rates | Change::Columns(_) | Change::Transposed(_) => {}
    }
    if let Change::Rates | Change::MovedRates(_) = change {
        values.iter_mut().for_each(|value| *value = Decay::Log.rate(*value));
    }
}

/// The factor of the range that a row is in.
fn factor_of(factors: &[(usize, f32)], row: usize) -> f32 {
    factors.iter().find(|(end, _)| row < *end).map_or(1.0, |(_, factor)| *factor)
}

/// What becomes of a tensor of a model with config `from` in one with config `to`.
fn change(from: &ModelConfig, to: &ModelConfig, id: TensorId) -> Option<Change> {
    let whole = |factor: f32| (factor != 1.0).then(|| Change::Factors(vec![(usize::MAX, factor)]));
    let (index, tensor) = match id {
        TensorId::TokenEmbedding => return whole(from.style.embedding_scale / to.style.embedding_scale),
        TensorId::Output | TensorId::OutputBias => return whole(from.style.logit_scale / to.style.logit_scale),
        TensorId::Layer(index, tensor) => (index, tensor),
        _ => return None,
    };
    let (was, is) = (from.layers.get(index)?, to.layers.get(index)?);
    match (was.mixer, is.mixer) {
        (Mixer::LatentAttention(was), Mixer::LatentAttention(is)) => latent_change(from, to, &was, &is, tensor),
        (Mixer::Mamba2(was), Mixer::Mamba2(is)) if was.decay != is.decay => {
            (tensor == LayerTensor::DecayLog).then_some(Change::Rates)
        }
        (Mixer::DeltaNet(_), Mixer::DeltaNet(_)) => delta_change(was, is, tensor),
        (Mixer::AttentionAndMamba2(mamba), Mixer::AttentionAndMamba2(other)) => {
            use LayerTensor::*;
            let [of, to] = [from.style.multipliers, to.style.multipliers];
            let input = of.attention_input / to.attention_input;
            match tensor {
                Q | V => whole(input),
                K => whole(input * of.key / to.key),
                KBias => whole(of.key / to.key),
                O | OBias => whole(of.attention_output / to.attention_output),
                Gate | GateBias => whole(of.gate / to.gate),
                Down | DownBias => whole(of.down / to.down),
                MixerIn | MixerInBias => {
                    let keys = mamba.groups * mamba.state_size;
                    let widths = [mamba.width(), mamba.width(), keys, keys, mamba.heads];
                    // A bias is added after the input was multiplied.
                    let input = if tensor == MixerIn { mamba.input_scale / other.input_scale } else { 1.0 };
                    let mut end = 0;
                    let factors = widths.into_iter().zip(mamba.scales.iter().zip(&other.scales));
                    let factors: Vec<_> = factors
                        .map(|(width, (of, to))| {
                            end += width;
                            (end, input * of / to)
                        })
                        .collect();
                    factors.iter().any(|(_, factor)| *factor != 1.0).then_some(Change::Factors(factors))
                }
                MixerOut | MixerOutBias => whole(mamba.output_scale / other.output_scale),
                DecayLog => (mamba.decay != other.decay).then_some(Change::Rates),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The part that turns stands last in each head's query, and in what keys are made of.
fn latent_change(
    from: &ModelConfig,
    to: &ModelConfig,
    was: &LatentAttention,
    is: &LatentAttention,
    tensor: LayerTensor,
) -> Option<Change> {
    let turned = |heads: usize, width: usize| {
        let rows = (0..heads * width).map(|row| {
            let component = (row % width).checked_sub(width - was.rope_dim);
            component.map_or(row, |at| row - at + from.rope.source_of(at, to.rope.pairs))
        });
        (from.rope.pairs != to.rope.pairs).then(|| Change::Rows(rows.collect()))
    };
    match tensor {
        LayerTensor::LatentK if was.transposed_keys != is.transposed_keys => Some(Change::Transposed(was.heads)),
        LayerTensor::Q | LayerTensor::QUp => turned(was.heads, was.query_dim()),
        LayerTensor::Latent => turned(1, was.width()),
        _ => None,
    }
}

/// Heads of values in another order, and whatever belongs to one of them.
fn delta_change(was: &LayerConfig, is: &LayerConfig, tensor: LayerTensor) -> Option<Change> {
    use LayerTensor::*;
    let (Mixer::DeltaNet(was), Mixer::DeltaNet(is)) = (was.mixer, is.mixer) else { return None };
    let (heads, groups) = (was.value_heads, was.key_heads.max(1));
    let moved = |width: usize, before: usize| {
        let source = |head: usize| head % groups * (heads / groups) + head / groups;
        let rows = (0..heads * width).map(|row| before + source(row / width) * width + row % width);
        (0..before).chain(rows).collect::<Vec<_>>()
    };
    let is_tiled = (was.order, is.order) == (ValueOrder::Grouped, ValueOrder::Tiled);
    match tensor {
        // Rates that move are converted before.
        DecayLog if was.decay != is.decay && !is_tiled => Some(Change::Rates),
        _ if !is_tiled => None,
        MixerIn | Conv | ConvBias => Some(Change::Rows(moved(was.value_dim, 2 * was.key_width()))),
        MixerGate => Some(Change::Rows(moved(was.value_dim, 0))),
        MixerBeta | MixerDecay | StepBias => Some(Change::Rows(moved(1, 0))),
        DecayLog => Some(Change::MovedRates(moved(1, 0))),
        MixerOut => Some(Change::Columns(moved(was.value_dim, 0))),
        _ => None,
    }
}
