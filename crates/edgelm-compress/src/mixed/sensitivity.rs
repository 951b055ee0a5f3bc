//! What each format of each tensor costs the whole model.
//!
//! For small errors the KL divergence of a model is a quadratic form of the errors of its tensors' outputs, and the errors
//! of different tensors do not see each other. So one trial per tensor gives its factor, and the output errors of its
//! formats, which are cheap, give the rest:
//!
//! kl(t, format) = KL(t, trial) · E(t, format) / E(t, trial),  E = tr(ΔW · H · ΔWᵀ)

use crate::{
    CompressError, MatrixFormat, Walk,
    layer_pass::{decode, groups_of},
    logits::Logits,
    moments::{Moments, quadratic},
};
use edgelm_engine::Block;
use edgelm_kernels::{Cpu, kl_divergence};
use edgelm_model::{Checkpoint, Edited, Replaced, TensorId, Tensors};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeOptions {
    /// Calibration tokens that are run through the model once per tensor.
    pub tokens: usize,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { tokens: 4096 }
    }
}

/// What one format would cost a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FormatCost {
    /// The format.
    pub format: MatrixFormat,
    /// Size of the tensor in it.
    pub bytes: u64,
    /// Expected divergence of the model from its parent if only this tensor is quantized.
    pub kl: f64,
}

/// A tensor with its choices, smallest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Which.
    pub id: TensorId,
    /// Formats whose blocks fit its rows.
    pub formats: Vec<FormatCost>,
}

/// Rows from which the output error of a format is estimated.
const SAMPLED_ROWS: usize = 192;

/// Tokens of a window that are run. Many beginnings say more about all of the calibration data than a few whole windows.
const PIECE: usize = 256;

/// Rows of logits at a time.
const LOGIT_ROWS: usize = 128;

/// Measures every matrix of the model for the formats that `candidates` has for it. The layers are walked once, with one layer in memory
/// and one copy of the hidden states per tensor. `on_layer` is called with (done, total) after each layer.
pub fn measure_sensitivity(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    candidates: &dyn Fn(TensorId) -> Vec<MatrixFormat>,
    options: &ProbeOptions,
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<Vec<Sensitivity>, CompressError> {
    let windows = &shortened(windows, options.tokens)[..];
    let mut edited = Edited::new(checkpoint);
    let mut walk = Walk::begin(checkpoint, cpu, windows)?;
    let mut found: Vec<(Sensitivity, f64)> = Vec::new();
    // The calibration data on its way through the model with one tensor changed, in the order of `found`.
    let mut trials: Vec<Walk<'_>> = Vec::new();
    let head = checkpoint.config().head();

    if head != TensorId::TokenEmbedding {
        // What every token looks up counts alike.
        let (sensitivity, trial) =
            costs(&edited, TensorId::TokenEmbedding, None, &candidates(TensorId::TokenEmbedding))?;
        found.push(sensitivity);
        edited.replace(TensorId::TokenEmbedding, trial);
        trials.push(Walk::begin(&edited, cpu, windows)?);
        edited.take(TensorId::TokenEmbedding);
    }
    let layers = checkpoint.config().layers.len();
    for layer in 0..layers {
        let block = Block::load(&edited, cpu, layer)?;
        for trial in &mut trials {
            trial.go_through(&block, &mut |_, _, _| ControlFlow::Continue(()))?;
        }
        drop(block);
        let groups = groups_of(edited.config(), layer);
        for group in &groups {
            let moments = walk.moments(&edited, group[0])?;
            for &tensor in group {
                let id = TensorId::Layer(layer, tensor);
                let (sensitivity, replaced) = costs(&edited, id, Some(&moments), &candidates(id))?;
                found.push(sensitivity);
                edited.replace(id, replaced);
                let mut trial = walk.fork()?;
                trial.advance(&edited)?;
                trials.push(trial);
                edited.take(id);
            }
        }
        walk.advance(&edited)?;
        for &tensor in groups.iter().flatten() {
            checkpoint.release(TensorId::Layer(layer, tensor));
        }
        on_layer(layer + 1, layers)?;
    }
    let moments = walk.head_moments(&edited)?;
    let (sensitivity, replaced) = costs(&edited, head, Some(&moments), &candidates(head))?;
    found.push(sensitivity);

    let parent = Logits::load(&edited, cpu)?;
    let mut divergences = divergences(&walk, &parent, &parent, &trials)?;
    edited.replace(head, replaced);
    let other = Logits::load(&edited, cpu)?;
    let trial = if head == TensorId::TokenEmbedding {
        // Tied: it changes what goes in as well as what comes out.
        let mut trial = Walk::begin(&edited, cpu, windows)?;
        (0..layers).try_for_each(|_| trial.advance(&edited))?;
        trial
    } else {
        walk.fork()?
    };
    divergences.extend(self::divergences(&walk, &parent, &other, &[trial])?);
    Ok(found
        .into_iter()
        .zip(divergences)
        .map(|((mut sensitivity, error), kl)| {
            let factor = if error > 0.0 { kl.max(0.0) / error } else { 0.0 };
            sensitivity.formats.iter_mut().for_each(|format| format.kl *= factor);
            sensitivity
        })
        .collect())
}

/// As many tokens as asked for, of as many windows as can be: the beginnings of each.
fn shortened(windows: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let piece = PIECE.max(tokens.div_ceil(windows.len().max(1)));
    let mut left = tokens;
    let mut out = Vec::new();
    for window in windows {
        if left == 0 {
            break;
        }
        let len = window.len().min(piece).min(left);
        out.push(window[..len].to_vec());
        left -= len;
    }
    out
}

/// The output errors of all formats (in place of their divergences), the tensor in the trial format, as f32, and the error
/// of that. Without moments every column counts alike.
fn costs(
    tensors: &Edited<'_>,
    id: TensorId,
    moments: Option<&Moments>,
    candidates: &[MatrixFormat],
) -> Result<((Sensitivity, f64), Replaced), CompressError> {
    let view = tensors.tensor(id)?;
    let (row_len, rows) = (view.row_len(), view.rows());
    let values = decode(tensors, id)?;
    let importance = moments.map(Moments::mean_squares);
    let importance = importance.as_deref();
    let h = moments.map(Moments::full).transpose()?;
    let error_of = |was: &[f32], is: &[f32]| -> f64 {
        let difference: Vec<f32> = was.iter().zip(is).map(|(was, is)| was - is).collect();
        match &h {
            Some(h) => quadratic(h, &difference),
            None => difference.iter().map(|value| f64::from(value * value)).sum(),
        }
    };
    let stride = rows.div_ceil(SAMPLED_ROWS).max(1);
    let sample: Vec<f32> = values.chunks_exact(row_len).step_by(stride).flatten().copied().collect();
    let share = values.len() as f64 / sample.len().max(1) as f64;
    let mut formats = Vec::new();
    for &format in candidates {
        let Some(bytes) = format.bytes(rows, row_len) else { continue };
        let rounded = format.rounded(&sample, row_len, importance)?;
        formats.push(FormatCost { format, bytes, kl: share * error_of(&sample, &rounded) });
    }
    formats.sort_by_key(|format| format.bytes);
    let least = (TRIAL_BITS * values.len() as f64 / 8.0) as u64;
    let Some(trial) = formats.iter().find(|format| format.bytes >= least).or(formats.last()) else {
        return Err(CompressError::NoCandidate { name: tensors.base().stored_name(id), row_len });
    };
    let changed = trial.format.rounded(&values, row_len, importance)?;
    let error = error_of(&values, &changed);
    let replaced = Replaced::f32(view.shape.to_vec(), &changed);
    Ok(((Sensitivity { id, formats }, error), replaced))
}

/// The trial format is the first of at least so many bits: rough enough that its divergence stands out from rounding noise,
/// fine enough that the divergence is still quadratic in the error.
const TRIAL_BITS: f64 = 4.2;

/// Mean KL divergence of the logits that `other` makes of each trial from those that `parent` makes of `base`.
fn divergences(
    base: &Walk<'_>,
    parent: &Logits<'_>,
    other: &Logits<'_>,
    trials: &[Walk<'_>],
) -> Result<Vec<f64>, CompressError> {
    let mut sums = vec![0.0; trials.len()];
    let mut positions = 0;
    for index in 0..base.windows() {
        let hidden = base.hidden(index)?;
        let changed = trials.iter().map(|trial| trial.hidden(index)).collect::<Result<Vec<_>, _>>()?;
        let step = LOGIT_ROWS * base.hidden_size();
        for start in (0..hidden.len()).step_by(step) {
            let part = start..hidden.len().min(start + step);
            let rows = part.len() / base.hidden_size();
            let of_parent = parent.of(&hidden[part.clone()]);
            for (sum, changed) in sums.iter_mut().zip(&changed) {
                *sum += compare(base.cpu(), &of_parent, &other.of(&changed[part.clone()]), rows);
            }
            positions += rows;
        }
    }
    Ok(sums.into_iter().map(|sum| sum / positions.max(1) as f64).collect())
}

/// Σ over rows of KL(parent || other).
fn compare(cpu: &Cpu, parent: &[f32], other: &[f32], rows: usize) -> f64 {
    let vocab = parent.len() / rows.max(1);
    let parts = parent.par_chunks(vocab).zip(other.par_chunks(vocab));
    let values: Vec<f64> = parts.map(|(parent, other)| kl_divergence(cpu, parent, other)).collect();
    values.iter().sum()
}
