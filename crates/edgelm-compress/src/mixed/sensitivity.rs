//! What each format of each tensor costs the whole model.
//!
//! For small errors the KL divergence of a model is a quadratic form of the errors of its tensors' outputs, and the errors
//! of different tensors do not see each other. So one trial per tensor gives its factor, and the output errors of its
//! formats, which are cheap, give the rest:
//!
//! kl(t, format) = KL(t, trial) · E(t, format) / E(t, trial),  E = tr(ΔW · H · ΔWᵀ)

use crate::{
    CompressError, Walk,
    activations::Activations,
    layer_pass::{GROUPS, decode},
    moments::Moments,
};
use edgelm_engine::{Block, Head};
use edgelm_kernels::{Cpu, Linear, Matrix, Scratch, kl_divergence};
use edgelm_model::{Checkpoint, Edited, Replaced, TensorId, Tensors};
use edgelm_tensor::{
    DType,
    block::{decode_row, encode_row},
};
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
        Self { tokens: 2048 }
    }
}

/// What one format would cost a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FormatCost {
    /// The format.
    pub dtype: DType,
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
const SAMPLED_ROWS: usize = 512;

/// Rows of logits at a time.
const LOGIT_ROWS: usize = 128;

/// A copy of the calibration data on its way through the model with one tensor changed.
struct Trial {
    id: TensorId,
    hidden: Activations,
}

/// Measures every matrix of the model for the formats of `candidates`. The layers are walked once, with one layer in memory
/// and one copy of the hidden states per tensor. `on_layer` is called with (done, total) after each layer.
pub fn measure_sensitivity(
    checkpoint: &Checkpoint,
    cpu: &Cpu,
    windows: &[Vec<u32>],
    candidates: &[DType],
    options: &ProbeOptions,
    on_layer: &mut dyn FnMut(usize, usize) -> Result<(), CompressError>,
) -> Result<Vec<Sensitivity>, CompressError> {
    let windows = &shortened(windows, options.tokens)[..];
    let mut edited = Edited::new(checkpoint);
    let mut walk = Walk::begin(checkpoint, cpu, windows)?;
    let mut found: Vec<(Sensitivity, f64)> = Vec::new();
    let mut trials = Vec::new();
    let head = Head::load(checkpoint)?.tensor();

    if head != TensorId::TokenEmbedding {
        // What every token looks up counts alike.
        let (sensitivity, trial) = costs(&edited, TensorId::TokenEmbedding, None, candidates)?;
        found.push(sensitivity);
        edited.replace(TensorId::TokenEmbedding, trial);
        trials.push(begin_trial(&edited, TensorId::TokenEmbedding, windows)?);
        edited.take(TensorId::TokenEmbedding);
    }
    let layers = checkpoint.config().layers.len();
    for layer in 0..layers {
        let block = Block::load(&edited, cpu, layer)?;
        for trial in &mut trials {
            run(&block, cpu, trial, checkpoint.config().hidden_size)?;
        }
        drop(block);
        for group in GROUPS {
            let moments = walk.moments(&edited, group[0])?;
            for &tensor in group {
                let id = TensorId::Layer(layer, tensor);
                let (sensitivity, replaced) = costs(&edited, id, Some(&moments), candidates)?;
                found.push(sensitivity);
                edited.replace(id, replaced);
                let block = Block::load(&edited, cpu, layer)?;
                let mut trial = Trial { id, hidden: walk.copy_hidden()? };
                run(&block, cpu, &mut trial, checkpoint.config().hidden_size)?;
                trials.push(trial);
                edited.take(id);
            }
        }
        walk.advance(&edited)?;
        for &tensor in GROUPS.into_iter().flatten() {
            checkpoint.release(TensorId::Layer(layer, tensor));
        }
        on_layer(layer + 1, layers)?;
    }
    let moments = walk.head_moments(&edited)?;
    let (sensitivity, replaced) = costs(&edited, head, Some(&moments), candidates)?;
    found.push(sensitivity);

    let base = walk.copy_hidden()?;
    let divergences = divergences(&edited, cpu, &base, &trials)?;
    edited.replace(head, replaced);
    let of_head = if head == TensorId::TokenEmbedding {
        // Tied: it changes what goes in as well as what comes out.
        let mut trial = begin_trial(&edited, head, windows)?;
        for layer in 0..layers {
            run(&Block::load(&edited, cpu, layer)?, cpu, &mut trial, checkpoint.config().hidden_size)?;
        }
        head_divergence(checkpoint, &edited, cpu, &base, &trial.hidden)?
    } else {
        head_divergence(checkpoint, &edited, cpu, &base, &base)?
    };
    let measured = trials.iter().map(|trial| trial.id).zip(divergences).chain([(head, of_head)]);
    Ok(found
        .into_iter()
        .zip(measured)
        .map(|((mut sensitivity, error), (id, kl))| {
            debug_assert_eq!(sensitivity.id, id);
            let factor = if error > 0.0 { kl.max(0.0) / error } else { 0.0 };
            sensitivity.formats.iter_mut().for_each(|format| format.kl *= factor);
            sensitivity
        })
        .collect())
}

/// As many tokens as asked for, whole windows but for the last.
fn shortened(windows: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let mut left = tokens;
    let mut out = Vec::new();
    for window in windows {
        if left == 0 {
            break;
        }
        out.push(window[..window.len().min(left)].to_vec());
        left -= window.len().min(left);
    }
    out
}

fn begin_trial(tensors: &dyn Tensors, id: TensorId, windows: &[Vec<u32>]) -> Result<Trial, CompressError> {
    let d = tensors.config().hidden_size;
    let mut hidden = Activations::new(windows.iter().map(|window| window.len() * d))?;
    for (index, window) in windows.iter().enumerate() {
        hidden.store(index, &edgelm_engine::embed_window(tensors, window)?)?;
    }
    Ok(Trial { id, hidden })
}

fn run(block: &Block, cpu: &Cpu, trial: &mut Trial, d: usize) -> Result<(), CompressError> {
    for index in 0..trial.hidden.len() {
        let mut hidden = trial.hidden.load(index)?;
        let rows = hidden.len() / d;
        let _ = block.run_window(cpu, &mut hidden, rows, &mut |_, _, _| ControlFlow::Continue(()));
        trial.hidden.store(index, &hidden)?;
    }
    Ok(())
}

/// The output errors of all formats (in place of their divergences), the tensor in the trial format, as f32, and the error
/// of that. Without moments every column counts alike.
fn costs(
    tensors: &Edited<'_>,
    id: TensorId,
    moments: Option<&Moments>,
    candidates: &[DType],
) -> Result<((Sensitivity, f64), Replaced), CompressError> {
    let view = tensors.tensor(id)?;
    let (row_len, rows) = (view.row_len(), view.rows());
    let values = decode(tensors, id)?;
    let importance = moments.map(Moments::mean_squares);
    let importance = importance.as_deref();
    let error_of = |was: &[f32], is: &[f32]| -> f64 {
        let difference: Vec<f32> = was.iter().zip(is).map(|(was, is)| was - is).collect();
        match moments {
            Some(moments) => moments.output_error(&difference),
            None => difference.iter().map(|value| f64::from(value * value)).sum(),
        }
    };
    let stride = rows.div_ceil(SAMPLED_ROWS).max(1);
    let sample: Vec<f32> = values.chunks_exact(row_len).step_by(stride).flatten().copied().collect();
    let share = values.len() as f64 / sample.len().max(1) as f64;
    let mut formats = Vec::new();
    for &dtype in candidates {
        let Ok(row_bytes) = dtype.row_bytes(row_len) else { continue };
        let rounded = rounded(dtype, &sample, row_len, importance)?;
        formats.push(FormatCost { dtype, bytes: (row_bytes * rows) as u64, kl: share * error_of(&sample, &rounded) });
    }
    formats.sort_by_key(|format| format.bytes);
    let Some(trial) = formats.iter().find(|format| format.dtype.bits_per_weight() >= TRIAL_BITS).or(formats.last())
    else {
        return Err(CompressError::NoCandidate { name: tensors.base().stored_name(id), row_len });
    };
    let changed = rounded(trial.dtype, &values, row_len, importance)?;
    let error = error_of(&values, &changed);
    let replaced = Replaced::f32(view.shape.to_vec(), &changed);
    Ok(((Sensitivity { id, formats }, error), replaced))
}

/// The trial format is the first of at least so many bits: rough enough that its divergence stands out from rounding noise,
/// fine enough that the divergence is still quadratic in the error.
const TRIAL_BITS: f64 = 4.2;

/// Encoded and decoded again.
fn rounded(
    dtype: DType,
    values: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<f32>, CompressError> {
    let row_bytes = dtype.row_bytes(row_len)?;
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(row_len).zip(values.par_chunks(row_len)).try_for_each_init(
        || vec![0; row_bytes],
        |bytes, (out, row)| {
            encode_row(dtype, row, importance, bytes)?;
            decode_row(dtype, bytes, out)
        },
    )?;
    Ok(out)
}

/// The head, ready to make logits.
struct Logits {
    head: Head,
    matrix: Matrix,
}

impl Logits {
    fn load(tensors: &dyn Tensors, cpu: &Cpu) -> Result<Self, CompressError> {
        let head = Head::load(tensors)?;
        let view = tensors.tensor(head.tensor())?;
        let matrix = Matrix::pack(cpu, view.dtype, view.rows(), view.row_len(), view.bytes)
            .map_err(edgelm_engine::EngineError::from)?;
        Ok(Self { head, matrix })
    }

    /// `[T, V]` for hidden states `[T, D]`.
    fn of(&self, cpu: &Cpu, hidden: &[f32], rows: usize) -> Vec<f32> {
        let normed = self.head.normed(cpu, hidden);
        let mut out = vec![0.0; rows * self.matrix.rows()];
        let linear = Linear { weight: &self.matrix, bias: None, out: &mut out };
        cpu.matmul(&normed, rows, &mut [linear], &mut Scratch::default());
        out
    }
}

/// Mean KL divergence of each trial's logits from those of `base`, both through the same head.
fn divergences(
    tensors: &dyn Tensors,
    cpu: &Cpu,
    base: &Activations,
    trials: &[Trial],
) -> Result<Vec<f64>, CompressError> {
    let logits = Logits::load(tensors, cpu)?;
    let d = tensors.config().hidden_size;
    let mut sums = vec![0.0; trials.len()];
    let mut positions = 0;
    for index in 0..base.len() {
        let hidden = base.load(index)?;
        let others = trials.iter().map(|trial| trial.hidden.load(index)).collect::<Result<Vec<_>, _>>()?;
        for start in (0..hidden.len()).step_by(LOGIT_ROWS * d) {
            let part = start..hidden.len().min(start + LOGIT_ROWS * d);
            let rows = part.len() / d;
            let parent = logits.of(cpu, &hidden[part.clone()], rows);
            for (sum, other) in sums.iter_mut().zip(&others) {
                *sum += compare(cpu, &parent, &logits.of(cpu, &other[part.clone()], rows), rows);
            }
            positions += rows;
        }
    }
    Ok(sums.into_iter().map(|sum| sum / positions.max(1) as f64).collect())
}

/// The same for one trial whose head is another one than that of `parent`.
fn head_divergence(
    parent: &dyn Tensors,
    tensors: &dyn Tensors,
    cpu: &Cpu,
    base: &Activations,
    other: &Activations,
) -> Result<f64, CompressError> {
    let (of_parent, of_other) = (Logits::load(parent, cpu)?, Logits::load(tensors, cpu)?);
    let d = tensors.config().hidden_size;
    let (mut sum, mut positions) = (0.0, 0);
    for index in 0..base.len() {
        let (hidden, changed) = (base.load(index)?, other.load(index)?);
        for start in (0..hidden.len()).step_by(LOGIT_ROWS * d) {
            let part = start..hidden.len().min(start + LOGIT_ROWS * d);
            let rows = part.len() / d;
            let parent = of_parent.of(cpu, &hidden[part.clone()], rows);
            sum += compare(cpu, &parent, &of_other.of(cpu, &changed[part], rows), rows);
            positions += rows;
        }
    }
    Ok(sum / positions.max(1) as f64)
}

/// Σ over rows of KL(parent || other).
fn compare(cpu: &Cpu, parent: &[f32], other: &[f32], rows: usize) -> f64 {
    let vocab = parent.len() / rows.max(1);
    let parts = parent.par_chunks(vocab).zip(other.par_chunks(vocab));
    let values: Vec<f64> = parts.map(|(parent, other)| kl_divergence(cpu, parent, other)).collect();
    values.iter().sum()
}
