//! One decoder layer of the pruned model: heads, channels and single weights taken out in the order of the computation, each
//! time on the inputs that everything before it, pruned, produces.

use super::{
    PruneMethod, PruneOptions,
    alps::alps,
    columns::{compensate, make_up, removal_order},
    lockstep::{Lockstep, Seen},
    output::stored_dtype,
    pattern::{Scope, Sparsity},
    refit::refit,
    sparsegpt::sparsegpt,
    widths::Widths,
};
use crate::{
    CompressError,
    layer_pass::{GROUPS, decode},
    moments::{Factor, Moments},
};
use edgelm_model::{Edited, LayerTensor, Replaced, TensorId, Tensors};
use edgelm_tensor::block::encode_row;
use faer::{Mat, MatRef};
use rayon::prelude::*;
use serde::Serialize;

/// Steps of the refit. Rows that have converged stop by themselves; at a damping of 0.01, 20 leave a thousandth.
const REFIT_STEPS: usize = 20;

/// Most rounds of ALPS. Masks of mica-40m stand still after 40 to 100.
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

/// What became of a matrix.
#[derive(Debug, Clone, Serialize)]
pub struct MatrixReport {
    /// Stored name in the model as it was.
    pub name: String,
    /// Root of tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ) on the inputs of the pruned model; known with calibration data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
}

/// The next layer in work.
pub(crate) struct LayerPass<'a, 'b> {
    pub edited: &'a mut Edited<'b>,
    pub lockstep: Option<&'a mut Lockstep<'b>>,
    pub options: &'a PruneOptions<'b>,
    /// In the pruned model.
    pub layer: usize,
    pub report: LayerReport,
}

impl LayerPass<'_, '_> {
    /// All of it; moves the walk on. `go_on` is called with a few words before each step.
    pub fn run(
        &mut self,
        widths: Widths,
        go_on: &mut dyn FnMut(&str) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        use LayerTensor::{Down, O};
        let now = Widths::of(&self.edited.config().layers[self.layer]);
        let is_narrower = (widths.kv_heads < now.kv_heads, widths.intermediate < now.intermediate);
        let sparsity = self.options.sparsity;
        go_on("attention")?;
        if is_narrower.0 {
            self.remove_kv_heads(now.kv_heads - widths.kv_heads)?;
        }
        if let Some(sparsity) = &sparsity {
            let seen = self.see_for_zeros(GROUPS[0])?;
            self.sparsify(GROUPS[0], seen, sparsity)?;
            go_on("attention output")?;
            let seen = self.see_for_zeros(GROUPS[1])?;
            self.sparsify(GROUPS[1], seen, sparsity)?;
        } else if !is_narrower.0 {
            self.make_up(O)?;
        }
        go_on("feed-forward inputs")?;
        // `gate` and `up` are compared with the parent's before its walk moves on, `down` after.
        let of_gate = match sparsity {
            Some(_) => self.see_for_zeros(GROUPS[2])?,
            None => None,
        };
        let next = self.edited.layers().get(self.layer + 1).copied();
        let next = next.unwrap_or(self.edited.base().config().layers.len());
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.advance_parent(next)?;
        }
        if is_narrower.1 {
            self.remove_channels(now.intermediate - widths.intermediate)?;
        }
        if let Some(sparsity) = &sparsity {
            self.sparsify(GROUPS[2], of_gate, sparsity)?;
            go_on("feed-forward output")?;
            let seen = self.see_for_zeros(GROUPS[3])?;
            self.sparsify(GROUPS[3], seen, sparsity)?;
        } else if !is_narrower.1 {
            self.make_up(Down)?;
        }
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.advance_child(self.edited)?;
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

    fn see(&self, reader: LayerTensor) -> Result<Option<Seen>, CompressError> {
        let see = |lockstep: &&mut Lockstep<'_>| lockstep.see(self.edited, reader);
        self.lockstep.as_ref().map(see).transpose()
    }

    /// The same where the choice of zeros looks at it.
    fn see_for_zeros(&self, group: &[LayerTensor]) -> Result<Option<Seen>, CompressError> {
        if self.options.method == PruneMethod::Magnitude { Ok(None) } else { self.see(group[0]) }
    }

    fn damped(&self, seen: &Seen) -> Result<Mat<f32>, CompressError> {
        let order: Vec<usize> = (0..seen.moments.columns()).collect();
        seen.moments.damped(self.options.damping, &order)
    }

    /// Puts new values in the place of a matrix, as they will be stored.
    fn replace(&mut self, tensor: LayerTensor, values: &[f32], columns: usize) -> Result<(), CompressError> {
        let id = self.id(tensor);
        let dtype = stored_dtype(self.edited.tensor(id)?.dtype);
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

    /// Weights that make up for what the layers before have come to lack, as far as this matrix can.
    fn aim(&self, tensor: LayerTensor, seen: &Seen, h: &Mat<f32>) -> Result<Vec<f32>, CompressError> {
        let weights = self.weights(tensor)?;
        if !self.options.follow_parent || !seen.missing.col_iter().any(|column| column.norm_max() > 0.0) {
            return Ok(weights);
        }
        let result = if matches!(tensor, LayerTensor::O | LayerTensor::Down) {
            make_up(&weights, &seen.missing, h)
        } else {
            let columns = h.nrows();
            let view = MatRef::from_row_major_slice(&weights, weights.len() / columns.max(1), columns);
            make_up(&weights, &(view * &seen.missing), h)
        };
        self.in_tensor(tensor, result)
    }

    fn note(&mut self, tensor: LayerTensor, error: Option<f64>) {
        let name = self.name(tensor);
        self.report.matrices.push(MatrixReport { name, relative_output_error: error });
    }

    /// Adjusts a matrix that loses nothing itself.
    fn make_up(&mut self, tensor: LayerTensor) -> Result<(), CompressError> {
        if !self.options.follow_parent {
            return Ok(());
        }
        let Some(seen) = self.see(tensor)? else { return Ok(()) };
        let h = self.damped(&seen)?;
        let weights = self.aim(tensor, &seen, &h)?;
        self.replace(tensor, &weights, h.nrows())
    }

    /// Columns of `tensor` in groups of `width`: those of the `count` groups that matter least go, the others are adjusted.
    /// `magnitudes` scores groups for a method that looks at weights alone. Returns the groups that stay.
    fn remove_columns(
        &mut self,
        tensor: LayerTensor,
        width: usize,
        count: usize,
        magnitudes: &dyn Fn(&[f32]) -> Result<Vec<f64>, CompressError>,
    ) -> Result<Vec<usize>, CompressError> {
        let before = self.weights(tensor)?;
        let seen = self.see(tensor)?;
        let h = seen.as_ref().map(|seen| self.damped(seen)).transpose()?;
        let columns = self.edited.tensor(self.id(tensor))?.row_len();
        let weights = match (&seen, &h) {
            (Some(seen), Some(h)) => self.aim(tensor, seen, h)?,
            _ => before.clone(),
        };
        let removed: Vec<usize> = match (self.options.method, &h) {
            (PruneMethod::Magnitude, _) | (_, None) => least(&magnitudes(&weights)?, count),
            (PruneMethod::Wanda, Some(h)) => {
                let by_column = column_squares(&weights, columns);
                let score = |group: usize| {
                    (group * width..(group + 1) * width).map(|k| by_column[k] * f64::from(h[(k, k)])).sum()
                };
                least(&(0..columns / width).map(score).collect::<Vec<f64>>(), count)
            }
            (PruneMethod::SparseGpt | PruneMethod::Alps, Some(h)) => {
                let order = self.in_tensor(tensor, removal_order(&weights, h, width, count))?;
                order.into_iter().map(|removal| removal.group).collect()
            }
        };
        let groups: Vec<usize> = (0..columns / width).filter(|group| !removed.contains(group)).collect();
        let kept: Vec<usize> = groups.iter().flat_map(|group| group * width..(group + 1) * width).collect();
        let values = match &h {
            Some(h) => self.in_tensor(tensor, compensate(&weights, h, &kept))?,
            None => weights.chunks(columns).flat_map(|row| kept.iter().map(|&k| row[k])).collect(),
        };
        let error = seen.map(|seen| {
            let mut all = vec![0.0; before.len()];
            for (all, values) in all.chunks_mut(columns).zip(values.chunks(kept.len())) {
                kept.iter().zip(values).for_each(|(&k, value)| all[k] = *value);
            }
            relative_error(&seen.moments, &before, &all)
        });
        self.replace(tensor, &values, kept.len())?;
        self.note(tensor, error);
        Ok(groups)
    }

    /// Takes KV heads out, with the query heads that read them.
    fn remove_kv_heads(&mut self, count: usize) -> Result<(), CompressError> {
        use LayerTensor::{K, KBias, O, Q, QBias, V, VBias};
        let config = self.edited.config().layers[self.layer].clone();
        let (e, groups) = (config.head_dim, config.num_key_value_heads);
        let width = config.num_attention_heads / groups * e;
        let values = self.weights(V)?;
        let magnitudes = |o: &[f32]| {
            // What a group can say at most: the norm of its values times that of its outputs.
            let o = column_squares(o, width * groups);
            let v = values.chunks(values.len() / groups);
            let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            Ok(v.zip(o.chunks(width)).map(|(v, o)| energy(v) * o.iter().sum::<f64>()).collect())
        };
        let kept = self.remove_columns(O, width, count, &magnitudes)?;
        let rows = |of: usize| -> Vec<usize> { kept.iter().flat_map(|group| group * of..(group + 1) * of).collect() };
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
        use LayerTensor::{Down, Gate, GateBias, Up, UpBias};
        let width = self.edited.config().layers[self.layer].intermediate_size;
        let (gate, up) = (self.weights(Gate)?, self.weights(Up)?);
        let magnitudes = |down: &[f32]| {
            let row = |matrix: &[f32], c: usize| {
                let d = matrix.len() / width;
                matrix[c * d..][..d].iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
            };
            let down = column_squares(down, width);
            Ok((0..width).map(|c| row(&gate, c) * row(&up, c) * down[c]).collect())
        };
        let kept = self.remove_columns(Down, 1, count, &magnitudes)?;
        for tensor in [Gate, GateBias, Up, UpBias] {
            self.keep_rows(tensor, &kept)?;
        }
        let layer = &mut self.edited.config_mut().layers[self.layer];
        Widths { intermediate: kept.len(), ..Widths::of(layer) }.apply(layer);
        self.report.channels_removed = count;
        self.report.intermediate_size = kept.len();
        Ok(())
    }

    /// Puts zeros into matrices that share an input.
    fn sparsify(
        &mut self,
        group: &[LayerTensor],
        seen: Option<Seen>,
        sparsity: &Sparsity,
    ) -> Result<(), CompressError> {
        let h = seen.as_ref().map(|seen| self.damped(seen)).transpose()?;
        let updates = matches!(self.options.method, PruneMethod::SparseGpt | PruneMethod::Alps);
        let factor = h.as_ref().filter(|_| updates).map(Factor::new).transpose()?;
        for &tensor in group {
            let before = self.weights(tensor)?;
            let columns = self.edited.tensor(self.id(tensor))?.row_len();
            self.in_tensor(tensor, sparsity.check(before.len() / columns.max(1), columns))?;
            let values = match (&seen, &h, &factor) {
                (Some(seen), Some(h), Some(factor)) => {
                    let weights = self.aim(tensor, seen, h)?;
                    let mut values = sparsegpt(&weights, factor, sparsity);
                    if self.options.method == PruneMethod::Alps {
                        values = self.in_tensor(tensor, alps(&weights, &values, h, sparsity, ALPS_ROUNDS))?;
                    }
                    let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
                    refit(&weights, &mut values, &kept, h, REFIT_STEPS);
                    values
                }
                (Some(seen), ..) => {
                    zero_out(&before, &wanda_scores(&before, &seen.moments), columns, sparsity, Scope::Row)
                }
                _ => {
                    let squares: Vec<f32> = before.iter().map(|weight| weight * weight).collect();
                    zero_out(&before, &squares, columns, sparsity, Scope::Matrix)
                }
            };
            self.replace(tensor, &values, columns)?;
            let error = seen.as_ref().map(|seen| relative_error(&seen.moments, &before, &values));
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
