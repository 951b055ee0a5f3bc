//! One decoder layer of the pruned model: heads, channels and single weights taken out in the order of the computation, each
//! time on the inputs that everything before it, pruned, produces.

use super::{
    PruneMethod, PruneOptions,
    alps::alps,
    columns::{compensate, removal_order},
    follow::Parent,
    pattern::{Scope, Sparsity},
    refit::refit,
    sparsegpt::sparsegpt,
    widths::{LayerPlan, Widths},
};
use crate::{
    CompressError, Walk,
    layer_pass::{GROUPS, decode, joins_stream},
    moments::{Factor, Moments},
    output::stored_dtype,
};
use edgelm_linalg::Mat;
use edgelm_model::{Edited, LayerTensor, Replaced, TensorId, Tensors};
use edgelm_tensor::block::encode_row;
use rayon::prelude::*;
use serde::Serialize;

/// Most steps of the refit; rows that have converged stop by themselves. Chosen, not measured.
const REFIT_STEPS: usize = 20;

/// Most rounds of ALPS; it ends when the mask stands still. Chosen, not measured.
const ALPS_ROUNDS: usize = 120;

/// What became of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// Its number in the model as it was.
    pub layer: usize,
    /// KV heads that went, by their number, each with its query heads.
    pub kv_heads_removed: Vec<usize>,
    /// Query heads now.
    pub num_attention_heads: usize,
    /// FFN channels that went.
    pub channels_removed: usize,
    /// FFN channels now.
    pub intermediate_size: usize,
    /// Matrices that lost columns or single weights.
    pub matrices: Vec<MatrixReport>,
}

impl LayerReport {
    /// Nothing became of it yet.
    pub(crate) fn new(edited: &Edited<'_>, layer: usize) -> Self {
        let was = &edited.config().layers[layer];
        Self {
            layer: edited.layers()[layer],
            kv_heads_removed: Vec::new(),
            num_attention_heads: was.num_attention_heads,
            channels_removed: 0,
            intermediate_size: was.intermediate_size,
            matrices: Vec::new(),
        }
    }
}

/// What became of a matrix.
#[derive(Debug, Clone, Serialize)]
pub struct MatrixReport {
    /// Stored name in the model as it was.
    pub name: String,
    /// Root of tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ) on the inputs of the pruned model; known with calibration data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
}

/// A matrix before columns go, and what is known of its inputs.
pub(crate) struct Before {
    /// Of its inputs; `None` without calibration data, as `h` is.
    pub moments: Option<Moments>,
    /// Damped.
    pub h: Option<Mat<f32>>,
    pub weights: Vec<f32>,
}

/// The next layer in work.
pub(crate) struct LayerPass<'a, 'b> {
    pub edited: &'a mut Edited<'b>,
    pub walk: Option<&'a mut Walk<'b>>,
    /// Before the same layer, where the rest is to make up for what went.
    pub parent: Option<&'a mut Parent<'b>>,
    pub options: &'a PruneOptions<'b>,
    /// In the pruned model.
    pub layer: usize,
    pub report: LayerReport,
}

impl LayerPass<'_, '_> {
    /// All of it; moves the walk on. `go_on` is called with a few words before each step.
    pub fn run(
        &mut self,
        plan: &LayerPlan,
        go_on: &mut dyn FnMut(&str) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let widths = plan.widths;
        let now = Widths::of(&self.edited.config().layers[self.layer]);
        go_on("attention")?;
        if widths.kv_heads < now.kv_heads {
            self.remove_kv_heads(now.kv_heads - widths.kv_heads, plan.kv_heads.as_deref())?;
        }
        self.sparsify(GROUPS[0])?;
        go_on("attention output")?;
        self.follow(LayerTensor::O)?;
        self.sparsify(GROUPS[1])?;
        go_on("feed-forward inputs")?;
        if widths.intermediate < now.intermediate {
            self.remove_channels(now.intermediate - widths.intermediate)?;
        }
        self.sparsify(GROUPS[2])?;
        go_on("feed-forward output")?;
        self.follow(LayerTensor::Down)?;
        self.sparsify(GROUPS[3])?;
        if let Some(walk) = &mut self.walk {
            walk.advance(self.edited)?;
        }
        Ok(())
    }

    fn id(&self, tensor: LayerTensor) -> TensorId {
        TensorId::Layer(self.layer, tensor)
    }

    fn name(&self, tensor: LayerTensor) -> String {
        self.edited.base().stored_name(self.edited.source(self.id(tensor)))
    }

    fn in_tensor<T>(&self, tensor: LayerTensor, result: Result<T, CompressError>) -> Result<T, CompressError> {
        result.map_err(|source| CompressError::InTensor { name: self.name(tensor), source: Box::new(source) })
    }

    /// Values of a matrix. Errors where one is not finite.
    fn weights(&self, tensor: LayerTensor) -> Result<Vec<f32>, CompressError> {
        let weights = decode(self.edited, self.id(tensor))?;
        match weights.iter().position(|weight| !weight.is_finite()) {
            None => Ok(weights),
            Some(index) => self.in_tensor(tensor, Err(CompressError::NotFinite { what: format!("weight {index}") })),
        }
    }

    fn moments(&self, reader: LayerTensor) -> Result<Option<Moments>, CompressError> {
        self.walk.as_ref().map(|walk| walk.moments(self.edited, reader)).transpose()
    }

    fn damped(&self, moments: &Moments) -> Result<Mat<f32>, CompressError> {
        let order: Vec<usize> = (0..moments.columns()).collect();
        moments.damped(self.options.damping, &order)
    }

    /// Puts new values in the place of a matrix, as they will be stored.
    fn replace(&mut self, tensor: LayerTensor, values: &[f32], columns: usize) -> Result<(), CompressError> {
        let id = self.id(tensor);
        let dtype = stored_dtype(self.edited.describe(id)?.0);
        let row_bytes = dtype.row_bytes(columns)?;
        let mut bytes = vec![0; values.len() / columns.max(1) * row_bytes];
        let rows = bytes.par_chunks_mut(row_bytes).zip(values.par_chunks(columns));
        self.in_tensor(tensor, rows.try_for_each(|(bytes, values)| Ok(encode_row(dtype, values, None, bytes)?)))?;
        self.edited.replace(id, Replaced { dtype, shape: vec![values.len() / columns.max(1), columns], bytes });
        Ok(())
    }

    /// Keeps some rows of a matrix or values of a bias, as they are stored.
    fn keep_rows(&mut self, tensor: LayerTensor, kept: &[usize]) -> Result<(), CompressError> {
        let id = self.id(tensor);
        if !self.edited.has(id) {
            return Ok(());
        }
        let view = self.edited.tensor(id)?;
        let rows = view.shape.first().copied().unwrap_or(0);
        let row_bytes = view.bytes.len() / rows.max(1);
        let bytes = kept.iter().flat_map(|row| &view.bytes[row * row_bytes..][..row_bytes]).copied().collect();
        let shape = std::iter::once(kept.len()).chain(view.shape.iter().skip(1).copied()).collect();
        let replaced = Replaced { dtype: view.dtype, shape, bytes };
        self.edited.replace(id, replaced);
        Ok(())
    }

    fn note(&mut self, tensor: LayerTensor, error: Option<f64>) {
        let name = self.name(tensor);
        self.report.matrices.push(MatrixReport { name, relative_output_error: error });
    }

    /// Columns of `tensor` in groups of `width`: all but the `count` that matter least. `magnitudes` scores groups for a method
    /// that looks at weights alone.
    fn choose_columns(
        &self,
        tensor: LayerTensor,
        width: usize,
        count: usize,
        before: &Before,
        magnitudes: &dyn Fn(&[f32]) -> Vec<f64>,
    ) -> Result<Vec<usize>, CompressError> {
        let columns = self.edited.tensor(self.id(tensor))?.row_len();
        let weights = &before.weights;
        let removed: Vec<usize> = match (self.options.method, &before.h) {
            (PruneMethod::Magnitude, _) | (_, None) => least(&magnitudes(weights), count),
            (PruneMethod::Wanda, Some(h)) => {
                let by_column = column_squares(weights, columns);
                let score = |group: usize| {
                    (group * width..(group + 1) * width).map(|k| by_column[k] * f64::from(h[(k, k)])).sum()
                };
                least(&(0..columns / width).map(score).collect::<Vec<f64>>(), count)
            }
            (PruneMethod::SparseGpt | PruneMethod::Alps, Some(h)) => {
                let order = self.in_tensor(tensor, removal_order(weights, h, width, count))?;
                order.into_iter().map(|removal| removal.group).collect()
            }
        };
        Ok((0..columns / width).filter(|group| !removed.contains(group)).collect())
    }

    /// A matrix and its inputs.
    fn before(&self, tensor: LayerTensor) -> Result<Before, CompressError> {
        let moments = self.moments(tensor)?;
        let h = moments.as_ref().map(|moments| self.damped(moments)).transpose()?;
        Ok(Before { moments, h, weights: self.weights(tensor)? })
    }

    /// Keeps the columns `kept` of a matrix; they make up for the others as far as they can.
    fn keep_columns(&mut self, tensor: LayerTensor, kept: &[usize], before: &Before) -> Result<(), CompressError> {
        let weights = &before.weights;
        let columns = self.edited.tensor(self.id(tensor))?.row_len();
        let values = match &before.h {
            Some(h) => self.in_tensor(tensor, compensate(weights, h, kept))?,
            None => weights.chunks(columns).flat_map(|row| kept.iter().map(|&k| row[k])).collect(),
        };
        let error = before.moments.as_ref().map(|moments| {
            let mut all = vec![0.0; weights.len()];
            for (all, values) in all.chunks_mut(columns).zip(values.chunks(kept.len())) {
                kept.iter().zip(values).for_each(|(&k, value)| all[k] = *value);
            }
            relative_error(moments, weights, &all)
        });
        self.replace(tensor, &values, kept.len())?;
        self.note(tensor, error);
        Ok(())
    }

    /// Takes KV heads out, with the query heads that read them: all but `kept`, if that is decided.
    fn remove_kv_heads(&mut self, count: usize, kept: Option<&[usize]>) -> Result<(), CompressError> {
        use LayerTensor::{O, V};
        let before = self.before(O)?;
        let chosen = match kept {
            Some(kept) => kept.to_vec(),
            None => {
                let config = &self.edited.config().layers[self.layer];
                let groups = config.num_key_value_heads;
                let width = config.num_attention_heads / groups * config.head_dim;
                let values = self.weights(V)?;
                let magnitudes = |o: &[f32]| {
                    // What a group can say at most: the norm of its values times that of its outputs.
                    let o = column_squares(o, width * groups);
                    let v = values.chunks(values.len() / groups);
                    let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    v.zip(o.chunks(width)).map(|(v, o)| energy(v) * o.iter().sum::<f64>()).collect()
                };
                self.choose_columns(O, width, count, &before, &magnitudes)?
            }
        };
        self.keep_kv_heads(&chosen, &before)
    }

    /// Leaves a layer with some of its KV heads and the query heads that read them.
    pub fn keep_kv_heads(&mut self, kept: &[usize], before: &Before) -> Result<(), CompressError> {
        use LayerTensor::{K, KBias, O, Q, QBias, V, VBias};
        let config = self.edited.config().layers[self.layer].clone();
        let (e, groups) = (config.head_dim, config.num_key_value_heads);
        let width = config.num_attention_heads / groups * e;
        let rows = |of: usize| -> Vec<usize> { kept.iter().flat_map(|group| group * of..(group + 1) * of).collect() };
        self.keep_columns(O, &rows(width), before)?;
        for (tensor, of) in [(Q, width), (QBias, width), (K, e), (KBias, e), (V, e), (VBias, e)] {
            self.keep_rows(tensor, &rows(of))?;
        }
        let layer = &mut self.edited.config_mut().layers[self.layer];
        Widths { kv_heads: kept.len(), ..Widths::of(layer) }.apply(layer);
        self.report.kv_heads_removed = (0..groups).filter(|group| !kept.contains(group)).collect();
        self.report.num_attention_heads = layer.num_attention_heads;
        Ok(())
    }

    /// Takes FFN channels out.
    fn remove_channels(&mut self, count: usize) -> Result<(), CompressError> {
        use LayerTensor::{Down, Gate, Up};
        let width = self.edited.config().layers[self.layer].intermediate_size;
        let (gate, up) = (self.weights(Gate)?, self.weights(Up)?);
        let magnitudes = |down: &[f32]| {
            let row = |matrix: &[f32], c: usize| {
                let d = matrix.len() / width;
                matrix[c * d..][..d].iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
            };
            let down = column_squares(down, width);
            (0..width).map(|c| row(&gate, c) * row(&up, c) * down[c]).collect()
        };
        let before = self.before(Down)?;
        let kept = self.choose_columns(Down, 1, count, &before, &magnitudes)?;
        self.keep_channels(&kept, &before)
    }

    /// Leaves a layer with some of its FFN channels.
    pub fn keep_channels(&mut self, kept: &[usize], before: &Before) -> Result<(), CompressError> {
        use LayerTensor::{Down, Gate, GateBias, Up, UpBias};
        self.keep_columns(Down, kept, before)?;
        for tensor in [Gate, GateBias, Up, UpBias] {
            self.keep_rows(tensor, kept)?;
        }
        let layer = &mut self.edited.config_mut().layers[self.layer];
        self.report.channels_removed = layer.intermediate_size - kept.len();
        Widths { intermediate: kept.len(), ..Widths::of(layer) }.apply(layer);
        self.report.intermediate_size = kept.len();
        Ok(())
    }

    /// Moves a matrix whose outputs join the hidden states to where these come nearer to the parent's. A quantized one that loses nothing stays as it is.
    fn follow(&mut self, tensor: LayerTensor) -> Result<(), CompressError> {
        let id = self.id(tensor);
        // What reads the sum of hidden states and outputs; `None`: the next layer.
        let until = (tensor == LayerTensor::O).then_some(LayerTensor::Up);
        let is_there = |tensor: &LayerTensor| self.edited.has(self.id(*tensor));
        if !joins_stream(self.edited.config(), self.layer, tensor)
            || !is_there(&tensor)
            || !until.iter().all(is_there)
            || self.edited.describe(id)?.0.is_quantized() && !self.options.changes(id)
        {
            return Ok(());
        }
        let next = self.edited.layers().get(self.layer + 1).copied();
        let (Some(walk), Some(parent)) = (self.walk.as_deref(), self.parent.as_deref_mut()) else { return Ok(()) };
        if until.is_none() {
            // What layers that are gone would have added before the next one is part of what is missing.
            parent.go_to(next.unwrap_or(parent.layers()))?;
        }
        let lead = parent.lead(self.edited, walk, tensor, until)?;
        let mut weights = self.weights(tensor)?;
        lead.move_weights(&mut weights)?;
        self.replace(tensor, &weights, lead.columns())
    }

    /// Puts zeros into matrices that share an input.
    fn sparsify(&mut self, group: &[LayerTensor]) -> Result<(), CompressError> {
        let Some(sparsity) = &self.options.sparsity else { return Ok(()) };
        let method = self.options.method;
        let group: Vec<_> = group.iter().copied().filter(|&tensor| self.edited.has(self.id(tensor))).collect();
        let Some(&first) = group.first() else { return Ok(()) };
        let moments = if method == PruneMethod::Magnitude { None } else { self.moments(first)? };
        let h = moments.as_ref().filter(|_| method.makes_up()).map(|moments| self.damped(moments)).transpose()?;
        let factor = h.as_ref().map(Factor::new).transpose()?;
        for tensor in group {
            let before = self.weights(tensor)?;
            let columns = self.edited.tensor(self.id(tensor))?.row_len();
            self.in_tensor(tensor, sparsity.check(before.len() / columns.max(1), columns))?;
            let values = match (&moments, &h, &factor) {
                (_, Some(h), Some(factor)) => {
                    let mut values = sparsegpt(&before, factor, sparsity);
                    if method == PruneMethod::Alps {
                        values = self.in_tensor(tensor, alps(&before, &values, h, sparsity, ALPS_ROUNDS))?;
                    }
                    let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
                    refit(&before, &mut values, &kept, h, REFIT_STEPS);
                    values
                }
                (Some(moments), ..) => {
                    zero_out(&before, &wanda_scores(&before, moments), columns, sparsity, Scope::Row)
                }
                _ => {
                    let squares: Vec<f32> = before.iter().map(|weight| weight * weight).collect();
                    zero_out(&before, &squares, columns, sparsity, Scope::Matrix)
                }
            };
            self.replace(tensor, &values, columns)?;
            let error = moments.as_ref().map(|moments| relative_error(moments, &before, &values));
            self.note(tensor, error);
        }
        Ok(())
    }
}

/// (|w[n, k]|·‖x[k]‖)² / positions: what leaving a weight out costs where inputs are independent.
/// Source: Wanda (Sun et al. 2023, arXiv:2306.11695).
pub(super) fn wanda_scores(weights: &[f32], moments: &Moments) -> Vec<f32> {
    let squares = moments.mean_squares();
    let row = |row: &[f32]| row.iter().zip(&squares).map(|(w, x)| w * w * x).collect::<Vec<f32>>();
    weights.par_chunks(squares.len()).flat_map_iter(row).collect()
}

pub(super) fn zero_out(weights: &[f32], scores: &[f32], columns: usize, sparsity: &Sparsity, scope: Scope) -> Vec<f32> {
    let kept = sparsity.mask(scores, columns, scope);
    weights.iter().zip(kept).map(|(weight, kept)| if kept { *weight } else { 0.0 }).collect()
}

/// Root of tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ).
fn relative_error(moments: &Moments, before: &[f32], after: &[f32]) -> f64 {
    let difference: Vec<f32> = before.iter().zip(after).map(|(before, after)| before - after).collect();
    let energy = moments.output_error(before);
    if energy > 0.0 { (moments.output_error(&difference).max(0.0) / energy).sqrt() } else { 0.0 }
}

/// Σ_n w[n, k]².
fn column_squares(weights: &[f32], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for row in weights.chunks_exact(columns.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*w));
    }
    sums
}

/// The places of the `count` least scores.
fn least(scores: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    places.truncate(count);
    places
}
