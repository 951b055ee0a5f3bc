//! One decoder layer, prepared for this machine: what `Engine` stacks and what calibration walks one at a time.

mod attention;
mod conv;
mod delta_net;
mod experts;
mod feed_forward;
mod latent;
mod linear_group;
mod mamba2;
mod matrices;
mod mixer;
mod norm;
mod short_conv;
mod state;
mod xielu;

pub(crate) use matrices::{Matrices, load_matrix, load_vector};
pub(crate) use norm::Norm;
pub(crate) use state::{Slots, State};

use crate::{EngineError, LoadedAdapter, adapter::AdaptedRows, rope::Tables};
use edgelm_kernels::{Cpu, KvCache, KvDtype, KvShape, Matrix, Scratch, add_assign, scale};
use edgelm_model::{LayerConfig, LayerTensor, Mixer, ModelConfig, Residual, RopeConfig, Style, TensorId, Tensors};
use experts::MixtureOfExperts;
use feed_forward::{FeedForward, Roles};
use mixer::{MixerScratch, Mixing};
use std::ops::ControlFlow;

/// Sees the input of every group of linear layers that share it: who reads it, its rows `[T, K]`, and T. `Break` ends the
/// layer there: what comes after it is not wanted.
pub type Observer<'a> = dyn FnMut(&[LayerTensor], &[f32], usize) -> ControlFlow<()> + 'a;

/// What is read times a factor, in `out` where that is not 1.
fn scaled<'a>(cpu: &Cpu, x: &'a [f32], factor: f32, out: &'a mut Vec<f32>) -> &'a [f32] {
    if factor == 1.0 {
        return x;
    }
    out.clear();
    out.extend_from_slice(x);
    scale(cpu, out, factor);
    out
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}

/// Buffers of one layer's intermediate values, reused from layer to layer.
#[derive(Default)]
pub(crate) struct BlockScratch {
    pub(crate) matmul: Scratch,
    stream: Stream,
    halves: HalfScratch,
}

/// Those inside a half.
#[derive(Default)]
struct HalfScratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    heads: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What a mixer reads, where that is not the stream itself.
    input: Vec<f32>,
    mixer: MixerScratch,
}

/// What the halves of a layer read and return.
#[derive(Default)]
struct Stream {
    normed: Vec<f32>,
    update: Vec<f32>,
    second: Vec<f32>,
}

/// Rows of the batch that belong to one sequence, with the cache they are appended to.
pub(crate) struct Rows<'a> {
    pub(crate) cache: &'a mut KvCache,
    pub(crate) states: &'a mut [State],
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) adapter: Option<&'a LoadedAdapter>,
}

/// A batch on its way through a layer.
struct Pass<'p, 's> {
    cpu: &'p Cpu,
    spans: &'p mut [Rows<'s>],
    adapted: AdaptedRows<'s>,
    tables: &'p Tables<'p>,
    matmul: &'p mut Scratch,
    observer: &'p mut Observer<'p>,
}

/// The feed-forward half.
enum Half {
    Dense(Box<FeedForward>),
    Experts(Box<MixtureOfExperts>),
    /// There is none.
    Absent,
}

impl Half {
    fn matrices(&self) -> Box<dyn Iterator<Item = &Matrix> + '_> {
        match self {
            Self::Dense(network) => Box::new(network.matrices()),
            Self::Experts(experts) => Box::new(experts.matrices()),
            Self::Absent => Box::new(std::iter::empty()),
        }
    }

    fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        match self {
            Self::Dense(network) => network.forward(x, update, pass, scratch),
            Self::Experts(experts) => experts.forward(x, update, pass, scratch),
            Self::Absent => {
                update.clear();
                update.resize(x.len(), 0.0);
                ControlFlow::Continue(())
            }
        }
    }
}

/// A prepared decoder layer.
pub struct Block {
    index: usize,
    layer: LayerConfig,
    style: Style,
    rope: RopeConfig,
    local_rope: Option<RopeConfig>,
    attn_norm: Option<Norm>,
    mixer: Mixing,
    post_attn_norm: Option<Norm>,
    ffn_norm: Option<Norm>,
    feed_forward: Half,
    post_ffn_norm: Option<Norm>,
}

impl Block {
    /// Packs the weights of layer `index`.
    pub fn load(tensors: &dyn Tensors, cpu: &Cpu, index: usize) -> Result<Self, EngineError> {
        let mut matrices = Matrices::load(tensors, cpu, &Self::matrix_ids(tensors.config(), index))?;
        Self::assemble(tensors, cpu, &mut matrices, index)
    }

    /// What `assemble` needs.
    pub(crate) fn matrix_ids(config: &ModelConfig, index: usize) -> Vec<TensorId> {
        let tensors = config.layer_tensors(index).into_iter().filter(|tensor| tensor.is_multiplied());
        tensors.map(|tensor| TensorId::Layer(index, tensor)).collect()
    }

    /// Layer `index` out of matrices that are packed.
    pub(crate) fn assemble(
        tensors: &dyn Tensors,
        cpu: &Cpu,
        matrices: &mut Matrices,
        index: usize,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let config = tensors.config();
        let (kind, norms) = (config.style.norm, config.style.norms);
        let norm = |is_there: bool, gain, bias| {
            let (gain, bias) = (TensorId::Layer(index, gain), TensorId::Layer(index, bias));
            is_there.then(|| Norm::load(tensors, kind, config.hidden_size, gain, bias)).transpose()
        };
        Ok(Self {
            attn_norm: norm(norms.attn, T::AttnNorm, T::AttnNormBias)?,
            mixer: Mixing::load(tensors, cpu, matrices, index)?,
            post_attn_norm: norm(norms.post_attn, T::PostAttnNorm, T::PostAttnNorm)?,
            ffn_norm: norm(norms.ffn, T::FfnNorm, T::FfnNormBias)?,
            feed_forward: match config.layers[index].experts {
                None if config.layers[index].intermediate_size == 0 => Half::Absent,
                None => Half::Dense(Box::new(FeedForward::load(tensors, matrices, index, Roles::DENSE)?)),
                Some(experts) => Half::Experts(Box::new(MixtureOfExperts::load(tensors, matrices, index, experts)?)),
            },
            post_ffn_norm: norm(norms.post_ffn, T::PostFfnNorm, T::PostFfnNorm)?,
            index,
            layer: config.layers[index].clone(),
            style: config.style,
            rope: config.rope.clone(),
            local_rope: config.local_rope.clone(),
        })
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.mixer.matrices().chain(self.feed_forward.matrices())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum()
    }

    /// Bytes of weights that one token reads.
    pub(crate) fn bytes_per_token(&self) -> usize {
        let network: usize = self.feed_forward.matrices().map(Matrix::bytes).sum();
        let share = match &self.feed_forward {
            Half::Dense(_) | Half::Absent => 1.0,
            Half::Experts(experts) => experts.share_per_token(),
        };
        self.bytes() - network + (network as f64 * share) as usize
    }

    pub(crate) fn is_quantized(&self) -> bool {
        self.matrices().any(|matrix| matrix.dtype().is_quantized())
    }

    pub(crate) fn kernels(&self) -> Vec<&'static str> {
        self.matrices().map(Matrix::kernel).collect()
    }

    /// Runs one whole window of `t` positions from position 0 through this layer alone, in place on `hidden` `[T, D]`,
    /// with a fresh exact cache; `observer` sees the inputs of its linear layers, and may end the layer there, which leaves
    /// `hidden` half way. For calibration.
    pub fn run_window(&self, cpu: &Cpu, hidden: &mut [f32], t: usize, observer: &mut Observer<'_>) -> ControlFlow<()> {
        let layer = &self.layer;
        let shape = KvShape { num_key_value_heads: layer.num_key_value_heads, head_dim: layer.head_dim };
        let shapes = if layer.mixer.has_attention() { vec![shape] } else { Vec::new() };
        let mut cache = KvCache::new(&shapes, KvDtype::F32);
        let mut states = State::of_layer(&layer.mixer);
        let mut tables = Tables::new(&self.rope, self.local_rope.as_ref(), [layer.rope]);
        tables.extend(0..t, t);
        let mut rows = [Rows { cache: &mut cache, states: &mut states, start: 0, rows: t, adapter: None }];
        self.forward(cpu, hidden, Slots::default(), &mut rows, &tables, &mut BlockScratch::default(), observer)
    }

    pub(crate) fn mixer(&self) -> &Mixer {
        &self.layer.mixer
    }

    /// Both halves, joined to the stream as [`Residual`] says. `slots` is this layer's place in the caches.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        cpu: &Cpu,
        hidden: &mut [f32],
        slots: Slots,
        spans: &mut [Rows<'_>],
        tables: &Tables<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        cpu.trace_layer(Some(self.index));
        let adapted = AdaptedRows::new(spans.iter().map(|span| (span.rows, span.adapter)));
        let BlockScratch { matmul, stream, halves } = scratch;
        let pass = &mut Pass { cpu, spans, adapted, tables, matmul, observer };
        let Stream { normed, update, second } = stream;
        let residual = self.style.residual;
        match residual {
            Residual::Parallel => {
                let x = before(cpu, self.attn_norm.as_ref(), hidden, normed);
                self.mixer.forward(x, update, slots, pass, halves)?;
                self.finish(cpu, self.post_attn_norm.as_ref(), update, second);
                if let Some(norm) = &self.ffn_norm {
                    norm.apply(cpu, hidden, normed);
                }
                let has_norm = self.attn_norm.is_some() || self.ffn_norm.is_some();
                let x = if has_norm { normed.as_slice() } else { &*hidden };
                self.feed_forward.forward(x, second, pass, halves)?;
                add_assign(cpu, hidden, update);
                self.finish(cpu, self.post_ffn_norm.as_ref(), second, update);
                add_assign(cpu, hidden, second);
            }
            Residual::Sequential | Residual::Normed => {
                let x = before(cpu, self.attn_norm.as_ref(), hidden, normed);
                self.mixer.forward(x, update, slots, pass, halves)?;
                self.finish(cpu, self.post_attn_norm.as_ref(), update, second);
                if residual == Residual::Normed {
                    hidden.copy_from_slice(normed);
                }
                add_assign(cpu, hidden, update);
                let x = before(cpu, self.ffn_norm.as_ref(), hidden, normed);
                self.feed_forward.forward(x, update, pass, halves)?;
                self.finish(cpu, self.post_ffn_norm.as_ref(), update, second);
                if residual == Residual::Normed {
                    hidden.copy_from_slice(normed);
                }
                add_assign(cpu, hidden, update);
            }
            Residual::NormAfter => {
                self.mixer.forward(hidden, update, slots, pass, halves)?;
                add_assign(cpu, hidden, update);
                in_place(cpu, self.attn_norm.as_ref(), hidden, normed);
                self.feed_forward.forward(hidden, update, pass, halves)?;
                add_assign(cpu, hidden, update);
                in_place(cpu, self.ffn_norm.as_ref(), hidden, normed);
            }
        }
        ControlFlow::Continue(())
    }

    /// What becomes of a half's result before it is added to the stream.
    fn finish(&self, cpu: &Cpu, norm: Option<&Norm>, update: &mut Vec<f32>, spare: &mut Vec<f32>) {
        if let Some(norm) = norm {
            norm.apply(cpu, update, spare);
            std::mem::swap(update, spare);
        }
        let factor = self.style.residual_scale;
        if factor != 1.0 {
            scale(cpu, update, factor);
        }
    }
}

/// What a half reads: the stream through its norm, or as it is.
fn before<'a>(cpu: &Cpu, norm: Option<&Norm>, hidden: &'a [f32], normed: &'a mut Vec<f32>) -> &'a [f32] {
    match norm {
        Some(norm) => {
            norm.apply(cpu, hidden, normed);
            normed
        }
        None => hidden,
    }
}

/// The norm of the stream itself.
fn in_place(cpu: &Cpu, norm: Option<&Norm>, hidden: &mut [f32], spare: &mut Vec<f32>) {
    if let Some(norm) = norm {
        norm.apply(cpu, hidden, spare);
        hidden.copy_from_slice(spare);
    }
}
