//! A narrower residual stream: every layer reads and writes a part of it, and what reads makes up for the rest.
//!
//! Each layer is solved for what the parent's matrices would do to the whole stream that the *narrower* model would have, had
//! it kept it: beside the calibration data's stream z = Pᵀ·x, x goes on, written by whole matrices out of the narrow layers'
//! activations. Norms lose their gain to what reads them. The one thing a reader would get wrong: |z| is not |x|, and differs
//! from it by another factor at each position; the fit sees both as they are normalized.

use super::{
    LayerReport, PruneCalibration, PruneOptions, PruneReport,
    basis::{Basis, HiddenBasis, choose_channels, expressed, principal, product, tied_gain},
    likelihood::Likelihood,
    widths::units_to_remove,
};
use crate::{
    CompressError, MatrixFormat, Moments, OnTensor, Walk,
    activations::Activations,
    go_on, is_gguf,
    layer_pass::decode,
    output::{Output, stored_dtype},
};
use edgelm_engine::{Block, embed_window};
use edgelm_kernels::Cpu;
use edgelm_linalg::{Mat, MatRef, product_f32};
use edgelm_model::{Checkpoint, Edited, LayerTensor, Replaced, TensorId, Tensors};
use serde::Serialize;
use std::{ops::ControlFlow, path::Path, time::Instant};

/// Of so many calibration windows one is kept out of the fit, to choose between bases by; at most as many as losses are
/// measured on elsewhere.
const HELD_OUT: usize = 8;

/// What became of the residual stream.
#[derive(Debug, Clone, Serialize)]
pub struct HiddenReport {
    /// D before.
    pub hidden_size_before: usize,
    /// D now.
    pub hidden_size: usize,
    /// What was kept of it.
    pub basis: HiddenBasis,
    /// Perplexity on calibration windows kept out of the fit, of every basis that was tried.
    pub tried: Vec<(HiddenBasis, f64)>,
}

/// D that stays for a fraction that goes. Widths that are multiples of 32 stay so; multiples of 256 stay so where that is a
/// small step, an eighth of them or less.
pub(crate) fn narrower(size: usize, fraction: f64) -> Result<usize, CompressError> {
    let step = [256, 32].into_iter().find(|step| size.is_multiple_of(*step) && size / step >= 8).unwrap_or(1);
    let name = format!("steps of {step} hidden dimensions");
    Ok(size - step * units_to_remove("--hidden", fraction, size / step, &name)?)
}

/// Writes the model with `fraction` of its hidden size taken out. See [`super::prune`].
pub(crate) fn prune_hidden(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &PruneOptions<'_>,
    fraction: f64,
    on_step: &mut OnTensor<'_>,
) -> Result<PruneReport, CompressError> {
    let begin = Instant::now();
    let Some(PruneCalibration { cpu, windows }) = options.calibration else {
        return Err(CompressError::NeedsCalibration { what: "--hidden" });
    };
    let (size, count) = (checkpoint.config().hidden_size, checkpoint.config().layers.len());
    let width = narrower(size, fraction)?;
    let held = (windows.len() / HELD_OUT).min(super::likelihood::PERPLEXITY_WINDOWS);
    let (fit, held) = windows.split_at(windows.len() - held);
    let seen = Seen::of(checkpoint, cpu, fit, &mut |layer| go_on(on_step(layer, count, "importance of channels")))?;
    let mut bases = Vec::new();
    let is_tied = checkpoint.config().tie_word_embeddings;
    if options.hidden_basis != Some(HiddenBasis::Principal) {
        // What the head loses is lost for good; what a layer does, is a part of what comes after it.
        for head_weight in [1.0, count as f64] {
            bases.push(choose_channels(&seen.moments, &seen.readers(head_weight), width)?);
        }
    }
    // Untying would add what it takes out; only where that is asked for.
    if options.hidden_basis == Some(HiddenBasis::Principal) || (options.hidden_basis.is_none() && !is_tied) {
        bases.push(principal(&seen.moments, width)?);
    }
    drop(seen);
    let mut tried = Vec::new();
    if bases.len() > 1 && !held.is_empty() {
        for basis in &bases {
            let mut narrow = Narrow::begin(checkpoint, basis, cpu, options.damping, fit, held)?;
            for layer in 0..count {
                go_on(on_step(layer, count, &format!("trying {:?}: layer {layer}", basis.kind())))?;
                narrow.layer(layer)?;
                LayerTensor::ALL.iter().for_each(|&tensor| drop(narrow.edited.take(TensorId::Layer(layer, tensor))));
            }
            narrow.head()?;
            tried.push((basis.kind(), narrow.log_perplexity(held)?.exp()));
        }
    }
    let best = (0..tried.len()).min_by(|&a, &b| tried[a].1.total_cmp(&tried[b].1)).unwrap_or(0);
    let basis = bases.swap_remove(best);
    drop(bases);
    let mut narrow = Narrow::begin(checkpoint, &basis, cpu, options.damping, fit, &[])?;
    let config = narrow.edited.config().clone();
    let stored = |id: TensorId| {
        let source = if checkpoint.has(id) { id } else { TensorId::TokenEmbedding };
        Ok(stored_dtype(checkpoint.describe(source)?.0))
    };
    let mut writer = Output::create(output, &narrow.edited, &config, stored)?;
    let (mut layers, mut zeros) = (Vec::new(), 0);
    for id in config.tensor_ids() {
        match id {
            TensorId::Layer(layer, _) if layer == layers.len() => {
                go_on(on_step(layer, count, &format!("layer {layer}")))?;
                narrow.layer(layer)?;
                layers.push(LayerReport::new(&narrow.edited, layer));
            }
            TensorId::OutputNorm => narrow.head()?,
            _ => {}
        }
        zeros += writer.write(&narrow.edited, id)?;
        if id != TensorId::TokenEmbedding {
            narrow.edited.take(id);
        }
        if checkpoint.has(id) {
            checkpoint.release(id);
        }
    }
    let output_bytes = writer.finish()?;
    let parameters_after = config.parameters();
    let mut notes = if is_gguf(output) { checkpoint.gguf_notes_with(&config) } else { Vec::new() };
    if is_tied && !config.tie_word_embeddings {
        notes.push(format!("the output head is no longer the embedding: {} weights more", config.vocab_size * width));
    }
    if size.is_multiple_of(256) && !width.is_multiple_of(256) {
        notes.push(format!("rows of {width} are not whole blocks of 256: Q2_K to Q6_K and IQ formats do not fit them"));
    }
    Ok(PruneReport {
        parameters_before: checkpoint.parameters(),
        parameters_after,
        nonzero_parameters: parameters_after - zeros,
        sparsity: 0.0,
        input_bytes: checkpoint.file_bytes(),
        output_bytes,
        layers_removed: Vec::new(),
        layers,
        hidden: Some(HiddenReport { hidden_size_before: size, hidden_size: width, basis: basis.kind(), tried }),
        notes,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// What calibration says of the normalized stream and of what reads it.
struct Seen {
    /// Mean over all norms of x·xᵀ, x before the gain.
    moments: Mat<f64>,
    /// Σ over the groups of layers that share an input of G·Wᵀ·W·G, G the gain, each divided by what its outputs have.
    layers: Mat<f64>,
    /// The same of the output head.
    head: Mat<f64>,
}

impl Seen {
    fn of(
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        windows: &[Vec<u32>],
        on_layer: &mut dyn FnMut(usize) -> Result<(), CompressError>,
    ) -> Result<Self, CompressError> {
        use LayerTensor::{AttnNorm, FfnNorm, Gate, K, Q, Up, V};
        let size = checkpoint.config().hidden_size;
        let none = || Mat::zeros(size, size);
        let mut seen = Self { moments: none(), layers: none(), head: none() };
        let mut walk = Walk::begin(checkpoint, cpu, windows)?;
        for layer in 0..checkpoint.config().layers.len() {
            on_layer(layer)?;
            for (norm, readers) in [(AttnNorm, &[Q, K, V][..]), (FfnNorm, &[Gate, Up][..])] {
                let gain = decode(checkpoint, TensorId::Layer(layer, norm))?;
                let moments = walk.moments(checkpoint, readers[0])?;
                let ids: Vec<TensorId> = readers.iter().map(|&reader| TensorId::Layer(layer, reader)).collect();
                let of_readers = add_site(&mut seen.moments, checkpoint, &ids, &gain, &moments)?;
                seen.layers += of_readers;
            }
            walk.advance(checkpoint)?;
        }
        let gain = decode(checkpoint, TensorId::OutputNorm)?;
        let moments = walk.head_moments(checkpoint)?;
        seen.head = add_site(&mut seen.moments, checkpoint, &[checkpoint.config().head()], &gain, &moments)?;
        Ok(seen)
    }

    fn readers(&self, head_weight: f64) -> Mat<f64> {
        let size = self.head.nrows();
        Mat::from_fn(size, size, |i, j| self.layers[(i, j)] + head_weight * self.head[(i, j)])
    }
}

/// Adds the moments of a norm's output without its gain to `sum`; returns G·Wᵀ·W·G / tr(W·H·Wᵀ) of the matrices that read it.
fn add_site(
    sum: &mut Mat<f64>,
    checkpoint: &Checkpoint,
    readers: &[TensorId],
    gain: &[f32],
    moments: &Moments,
) -> Result<Mat<f64>, CompressError> {
    let size = gain.len();
    let h = moments.full()?;
    let mut gram = Mat::<f32>::zeros(size, size);
    for &id in readers {
        let weights = decode(checkpoint, id)?;
        let weights = MatRef::from_row_major_slice(&weights, weights.len() / size.max(1), size);
        product_f32(gram.as_mut(), true, weights.transpose(), weights);
    }
    let mut energy = 0.0;
    for j in 0..size {
        for i in 0..size {
            energy += f64::from(gram[(i, j)]) * f64::from(h[(i, j)]);
            let both = f64::from(gain[i]) * f64::from(gain[j]);
            // A channel of gain 0 says nothing here.
            if both != 0.0 {
                sum[(i, j)] += f64::from(h[(i, j)]) / both;
            }
        }
    }
    let gained = |i: usize, j: usize| f64::from(gram[(i, j)]) * f64::from(gain[i]) * f64::from(gain[j]);
    Ok(Mat::from_fn(size, size, |i, j| gained(i, j) / energy.max(f64::MIN_POSITIVE)))
}

/// Σ x·zᵀ and Σ z·zᵀ of normalized streams.
struct Cross {
    cross: Mat<f32>,
    h: Mat<f32>,
    positions: usize,
    eps: f32,
}

impl Cross {
    fn new(size: usize, width: usize, eps: f32) -> Self {
        Self { cross: Mat::zeros(size, width), h: Mat::zeros(width, width), positions: 0, eps }
    }

    /// Rows of x `[T, D]` and z `[T, d]`, not yet normalized.
    fn add(&mut self, x: &[f32], z: &[f32]) {
        let (size, width) = (self.cross.nrows(), self.cross.ncols());
        let (x, z) = (normalized(x, size, self.eps), normalized(z, width, self.eps));
        let rows = x.len() / size.max(1);
        let (x, z) = (MatRef::from_row_major_slice(&x, rows, size), MatRef::from_row_major_slice(&z, rows, width));
        product_f32(self.cross.as_mut(), true, x.transpose(), z);
        product_f32(self.h.as_mut(), true, z.transpose(), z);
        self.positions += rows;
    }

    /// The means of both.
    fn means(&self) -> Result<(Mat<f64>, Mat<f64>), CompressError> {
        let scale = 1.0 / self.positions.max(1) as f64;
        let (size, width) = (self.cross.nrows(), self.cross.ncols());
        let cross = Mat::from_fn(size, width, |k, i| f64::from(self.cross[(k, i)]) * scale);
        let h = Mat::from_fn(width, width, |i, j| f64::from(self.h[(i, j)]) * scale);
        match (0..width).all(|i| h[(i, i)].is_finite()) {
            true => Ok((cross, h)),
            false => Err(CompressError::NotFinite { what: "the activations of the calibration data".to_owned() }),
        }
    }
}

/// x / √(mean x² + eps) for every row.
fn normalized(x: &[f32], columns: usize, eps: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(columns.max(1)) {
        let mean = row.iter().map(|value| value * value).sum::<f32>() / columns as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter_mut().for_each(|value| *value *= scale);
    }
    out
}

/// The narrower model in the making.
struct Narrow<'a> {
    checkpoint: &'a Checkpoint,
    basis: &'a Basis,
    cpu: &'a Cpu,
    damping: f32,
    edited: Edited<'a>,
    /// x of every window, `[T, D]`, before the next layer.
    stream: Activations,
    /// Windows that nothing is fitted to.
    held: Walk<'a>,
}

impl<'a> Narrow<'a> {
    fn begin(
        checkpoint: &'a Checkpoint,
        basis: &'a Basis,
        cpu: &'a Cpu,
        damping: f32,
        fit: &[Vec<u32>],
        held: &[Vec<u32>],
    ) -> Result<Self, CompressError> {
        let size = checkpoint.config().hidden_size;
        let mut stream = Activations::new(fit.iter().map(|window| window.len() * size))?;
        for (index, window) in fit.iter().enumerate() {
            stream.store(index, &embed_window(checkpoint, cpu, window)?)?;
        }
        let mut edited = Edited::new(checkpoint);
        let config = edited.config_mut();
        (config.hidden_size, config.embedding_size) = (basis.width(), basis.width());
        edited.config_mut().tie_word_embeddings &= basis.kind() == HiddenBasis::Channels;
        let id = TensorId::TokenEmbedding;
        let rows = basis.of_rows(&decode(checkpoint, id)?, size);
        put(&mut edited, id, id, &rows, basis.width())?;
        let held = Walk::begin(&edited, cpu, held)?;
        Ok(Self { checkpoint, basis, cpu, damping, edited, stream, held })
    }

    fn size(&self) -> usize {
        self.checkpoint.config().hidden_size
    }

    fn cross(&self) -> Cross {
        Cross::new(self.size(), self.basis.width(), self.checkpoint.config().norm_eps)
    }

    fn narrow(&self, x: &[f32]) -> Vec<f32> {
        self.basis.of_rows(x, self.size())
    }

    /// W·G·T for the readers of a norm, G its gain, which becomes 1.
    fn read(&mut self, norm: TensorId, readers: &[TensorId], seen: &Cross) -> Result<(), CompressError> {
        let gain = decode(self.checkpoint, norm)?;
        let (cross, h) = seen.means()?;
        let t = expressed(self.basis, &cross, &h, self.damping)?.0;
        let t = Mat::from_fn(t.nrows(), t.ncols(), |k, i| t[(k, i)] as f32 * gain[k]);
        for &id in readers {
            // Untied, the head starts as the embedding.
            let source = if self.checkpoint.has(id) { id } else { TensorId::TokenEmbedding };
            let values = product(&decode(self.checkpoint, source)?, self.size(), t.as_ref());
            put(&mut self.edited, id, source, &values, self.basis.width())?;
        }
        self.gain(norm, &vec![1.0; self.basis.width()]);
        Ok(())
    }

    fn gain(&mut self, norm: TensorId, values: &[f32]) {
        self.edited.replace(norm, Replaced::f32(vec![values.len()], values));
    }

    /// Pᵀ·W for a matrix that writes the stream, and its bias.
    fn write(&mut self, layer: usize, tensor: LayerTensor, whole: &[f32]) -> Result<(), CompressError> {
        let (id, size) = (TensorId::Layer(layer, tensor), self.size());
        put(&mut self.edited, id, id, &self.basis.of_columns(whole, size), whole.len() / size.max(1))?;
        if let Some(bias) = self.bias(layer, tensor)? {
            let bias = self.narrow(&bias);
            let id = tensor.bias().map(|bias| TensorId::Layer(layer, bias)).unwrap_or(id);
            self.edited.replace(id, Replaced::f32(vec![bias.len()], &bias));
        }
        Ok(())
    }

    fn bias(&self, layer: usize, tensor: LayerTensor) -> Result<Option<Vec<f32>>, CompressError> {
        let id = tensor.bias().map(|bias| TensorId::Layer(layer, bias)).filter(|&id| self.checkpoint.has(id));
        id.map(|id| decode(self.checkpoint, id)).transpose()
    }

    /// The next layer, on the streams as they are before it; moves them on.
    fn layer(&mut self, layer: usize) -> Result<(), CompressError> {
        use LayerTensor::{AttnNorm, Down, FfnNorm, Gate, K, O, Q, Up, V};
        let id = |tensor| TensorId::Layer(layer, tensor);
        let (o, down) = (decode(self.checkpoint, id(O))?, decode(self.checkpoint, id(Down))?);
        let (o_bias, down_bias) = (self.bias(layer, O)?, self.bias(layer, Down)?);
        self.write(layer, O, &o)?;
        self.write(layer, Down, &down)?;
        let mut seen = self.cross();
        for index in 0..self.stream.len() {
            let x = self.stream.load(index)?;
            seen.add(&x, &self.narrow(&x));
        }
        self.read(id(AttnNorm), &[id(Q), id(K), id(V)], &seen)?;
        // For now, so that there is a layer to run; only its attention counts.
        self.read(id(FfnNorm), &[id(Gate), id(Up)], &seen)?;
        let mut seen = self.cross();
        let size = self.size();
        let block = Block::load(&self.edited, self.cpu, layer)?;
        for index in 0..self.stream.len() {
            let mut x = self.stream.load(index)?;
            let mut z = self.narrow(&x);
            let rows = x.len() / size.max(1);
            let _ = block.run_window(self.cpu, &mut z, rows, &mut |readers, input, _| {
                if readers.contains(&O) {
                    add_product(&mut x, input, &o, o_bias.as_deref(), size);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            seen.add(&x, &self.narrow(&x));
        }
        self.read(id(FfnNorm), &[id(Gate), id(Up)], &seen)?;
        let block = Block::load(&self.edited, self.cpu, layer)?;
        for index in 0..self.stream.len() {
            let mut x = self.stream.load(index)?;
            let mut z = self.narrow(&x);
            let rows = x.len() / size.max(1);
            let _ = block.run_window(self.cpu, &mut z, rows, &mut |readers, input, _| {
                for (reader, matrix, bias) in [(O, &o, &o_bias), (Down, &down, &down_bias)] {
                    if readers.contains(&reader) {
                        add_product(&mut x, input, matrix, bias.as_deref(), size);
                    }
                }
                ControlFlow::Continue(())
            });
            self.stream.store(index, &x)?;
        }
        self.held.advance(&self.edited)
    }

    /// The last norm and the output head, after the last layer.
    fn head(&mut self) -> Result<(), CompressError> {
        let mut seen = self.cross();
        for index in 0..self.stream.len() {
            let x = self.stream.load(index)?;
            seen.add(&x, &self.narrow(&x));
        }
        match self.basis {
            Basis::Channels(kept) if self.edited.config().tie_word_embeddings => {
                let gain = decode(self.checkpoint, TensorId::OutputNorm)?;
                let (cross, h) = seen.means()?;
                let (_, scale) = expressed(self.basis, &cross, &h, self.damping)?;
                let cross = Mat::from_fn(gain.len(), kept.len(), |k, i| cross[(k, i)] * f64::from(gain[k]));
                let head = decode(self.checkpoint, TensorId::TokenEmbedding)?;
                let head = MatRef::from_row_major_slice(&head, head.len() / gain.len().max(1), gain.len());
                let mut gram = Mat::<f32>::zeros(gain.len(), gain.len());
                product_f32(gram.as_mut(), true, head.transpose(), head);
                let gram = Mat::from_fn(gain.len(), gain.len(), |i, j| f64::from(gram[(i, j)]));
                let before: Vec<f64> = kept.iter().map(|&k| f64::from(gain[k]) * scale).collect();
                let found = tied_gain(&gram, kept, &cross, &h, &before, self.damping)?;
                self.gain(TensorId::OutputNorm, &found);
                Ok(())
            }
            _ => self.read(TensorId::OutputNorm, &[TensorId::Output], &seen),
        }
    }

    /// Of the held-out windows, after `head`.
    fn log_perplexity(&self, windows: &[Vec<u32>]) -> Result<f64, CompressError> {
        let likelihood = Likelihood::load(&self.edited, self.cpu)?;
        let hidden = (0..self.held.windows()).map(|index| self.held.hidden(index)).collect::<Result<Vec<_>, _>>()?;
        Ok(likelihood.perplexity(windows, &hidden)?.ln())
    }
}

/// x += y·Wᵀ + b for rows x `[T, D]`, y `[T, K]`, W `[D, K]`.
fn add_product(x: &mut [f32], y: &[f32], weights: &[f32], bias: Option<&[f32]>, size: usize) {
    let columns = weights.len() / size.max(1);
    let weights = MatRef::from_row_major_slice(weights, size, columns);
    let update = product(y, columns, weights.transpose());
    x.iter_mut().zip(update).for_each(|(x, update)| *x += update);
    if let Some(bias) = bias {
        x.chunks_exact_mut(size).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias));
    }
}

/// Puts values in the place of a matrix, as they will be stored: in the format of `source`.
fn put(
    edited: &mut Edited<'_>,
    id: TensorId,
    source: TensorId,
    values: &[f32],
    columns: usize,
) -> Result<(), CompressError> {
    let named = |error| CompressError::Tensor { name: edited.base().stored_name(source), source: error };
    let dtype = stored_dtype(edited.base().describe(source)?.0);
    let bytes = MatrixFormat::Block(dtype).encode(values, columns, None).map_err(named)?;
    edited.replace(id, Replaced { dtype, shape: vec![values.len() / columns.max(1), columns], bytes });
    Ok(())
}
