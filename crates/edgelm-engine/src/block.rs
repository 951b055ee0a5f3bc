//! One decoder layer, prepared for this machine: what `Engine` stacks and what calibration walks one at a time.

use crate::{EngineError, rope::RopeTable};
use edgelm_format::{Reordered, TensorView};
use edgelm_kernels::{
    Attention, Cpu, KvCache, KvDtype, KvShape, Linear, Matrix, Scratch, Span, Weights, add_assign, rms_norm, rope,
    silu_mul,
};
use edgelm_model::{LayerConfig, LayerTensor, RopeConfig, TensorId, Tensors};
use edgelm_tensor::block::decode_row;
use std::{borrow::Cow, collections::HashMap, ops::ControlFlow};

/// Sees the input of every group of linear layers that share it: who reads it, its rows `[T, K]`, and T. `Break` ends the
/// layer there: what comes after it is not wanted.
pub type Observer<'a> = dyn FnMut(&[LayerTensor], &[f32], usize) -> ControlFlow<()> + 'a;

/// A linear layer with its optional bias.
struct Projection {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Projection {
    fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        layer: usize,
        weight: LayerTensor,
        bias: LayerTensor,
    ) -> Result<Self, EngineError> {
        let bias = TensorId::Layer(layer, bias);
        Ok(Self {
            weight: matrices.take(TensorId::Layer(layer, weight))?,
            bias: tensors.has(bias).then(|| load_vector(tensors, bias)).transpose()?,
        })
    }

    fn linear<'a>(&'a self, out: &'a mut Vec<f32>, rows: usize) -> Linear<'a> {
        out.resize(rows * self.weight.rows(), 0.0);
        Linear { weight: &self.weight, bias: self.bias.as_deref(), out }
    }
}

/// A prepared decoder layer: pre-norm attention and a gated feed-forward network.
pub struct Block {
    config: LayerConfig,
    rope: RopeConfig,
    eps: f32,
    attn_norm: Vec<f32>,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
    input_scales: InputScales,
}

/// Scales of the int8 inputs of linear layers, where they are fixed.
struct InputScales {
    attention: Option<f32>,
    o: Option<f32>,
    ffn: Option<f32>,
    down: Option<f32>,
}

impl InputScales {
    fn load(tensors: &dyn Tensors, layer: usize) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let shared = |group: &[LayerTensor]| {
            let scales: Vec<_> =
                group.iter().map(|&tensor| tensors.input_scale(TensorId::Layer(layer, tensor))).collect();
            match scales[..] {
                [first, ..] if scales.iter().all(|scale| *scale == first) => Ok(first),
                _ => Err(EngineError::InputScales { layer }),
            }
        };
        Ok(Self {
            attention: shared(&[T::Q, T::K, T::V])?,
            o: shared(&[T::O])?,
            ffn: shared(&[T::Gate, T::Up])?,
            down: shared(&[T::Down])?,
        })
    }
}

/// Products of one input, with its fixed scale if it has one.
fn matmul(cpu: &Cpu, x: &[f32], rows: usize, scale: Option<f32>, group: &mut [Linear<'_>], scratch: &mut Scratch) {
    match scale {
        None => cpu.matmul_two_terms(x, rows, group, scratch),
        Some(scale) => cpu.matmul_static(x, rows, scale, group, scratch),
    }
}

/// Buffers of one layer's intermediate values, reused from layer to layer.
#[derive(Default)]
pub(crate) struct BlockScratch {
    pub(crate) matmul: Scratch,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    heads: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    update: Vec<f32>,
}

/// Rows of the batch that belong to one sequence, with the cache they are appended to.
pub(crate) struct Rows<'a> {
    pub(crate) cache: &'a mut KvCache,
    pub(crate) start: usize,
    pub(crate) rows: usize,
}

impl Block {
    /// Packs the weights of layer `index`.
    pub fn load(tensors: &dyn Tensors, cpu: &Cpu, index: usize) -> Result<Self, EngineError> {
        let mut matrices = Matrices::load(tensors, cpu, &Self::matrix_ids(index))?;
        Self::assemble(tensors, &mut matrices, index)
    }

    /// What `assemble` needs.
    pub(crate) fn matrix_ids(index: usize) -> [TensorId; 7] {
        use LayerTensor as T;
        [T::Q, T::K, T::V, T::O, T::Gate, T::Up, T::Down].map(|tensor| TensorId::Layer(index, tensor))
    }

    /// Layer `index` out of matrices that are packed.
    pub(crate) fn assemble(tensors: &dyn Tensors, matrices: &mut Matrices, index: usize) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let config = tensors.config();
        let mut projection = |weight, bias| Projection::load(tensors, matrices, index, weight, bias);
        let vector = |tensor| load_vector(tensors, TensorId::Layer(index, tensor));
        let optional = |tensor| tensors.has(TensorId::Layer(index, tensor)).then(|| vector(tensor)).transpose();
        Ok(Self {
            config: config.layers[index].clone(),
            rope: config.rope.clone(),
            eps: config.rms_norm_eps,
            attn_norm: vector(T::AttnNorm)?,
            q: projection(T::Q, T::QBias)?,
            k: projection(T::K, T::KBias)?,
            v: projection(T::V, T::VBias)?,
            o: projection(T::O, T::OBias)?,
            q_norm: optional(T::QNorm)?,
            k_norm: optional(T::KNorm)?,
            ffn_norm: vector(T::FfnNorm)?,
            gate: projection(T::Gate, T::GateBias)?,
            up: projection(T::Up, T::UpBias)?,
            down: projection(T::Down, T::DownBias)?,
            input_scales: InputScales::load(tensors, index)?,
        })
    }

    pub(crate) fn matrices(&self) -> [&Matrix; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down].map(|projection| &projection.weight)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.matrices().iter().map(|matrix| matrix.bytes()).sum()
    }

    pub(crate) fn is_quantized(&self) -> bool {
        self.matrices().iter().any(|matrix| matrix.dtype().is_quantized())
    }

    pub(crate) fn kernels(&self) -> Vec<&'static str> {
        self.matrices().iter().map(|matrix| matrix.kernel()).collect()
    }

    /// Runs one whole window of `t` positions from position 0 through this layer alone, in place on `hidden` `[T, D]`,
    /// with a fresh exact cache; `observer` sees the inputs of its linear layers, and may end the layer there, which leaves
    /// `hidden` half way. For calibration.
    pub fn run_window(&self, cpu: &Cpu, hidden: &mut [f32], t: usize, observer: &mut Observer<'_>) -> ControlFlow<()> {
        let shape = KvShape { num_key_value_heads: self.config.num_key_value_heads, head_dim: self.config.head_dim };
        let mut cache = KvCache::new(&[shape], KvDtype::F32);
        let config = self.rope.clone();
        let mut table = RopeTable::new(&config);
        table.extend(0..t, t);
        let mut rows = [Rows { cache: &mut cache, start: 0, rows: t }];
        self.forward(cpu, hidden, 0, &mut rows, &table, &mut BlockScratch::default(), observer)
    }

    /// hidden += attention(norm(hidden)); hidden += ffn(norm(hidden)). `layer` is this layer's index in the caches.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        cpu: &Cpu,
        hidden: &mut [f32],
        layer: usize,
        spans: &mut [Rows<'_>],
        table: &RopeTable<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        cpu.trace_layer(Some(layer));
        self.attention(cpu, hidden, layer, spans, table, scratch, observer)?;
        self.feed_forward(cpu, hidden, table.rows(), scratch, observer)
    }

    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        cpu: &Cpu,
        hidden: &mut [f32],
        layer: usize,
        spans: &mut [Rows<'_>],
        table: &RopeTable<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, normed, q, k, v, heads, update, .. } = scratch;
        let scales = &self.input_scales;
        let rows = table.rows();
        let head_dim = self.config.head_dim;
        normed.resize(hidden.len(), 0.0);
        rms_norm(cpu, hidden, &self.attn_norm, self.eps, normed);
        observer(&[T::Q, T::K, T::V], normed, rows)?;
        let mut products = [self.q.linear(q, rows), self.k.linear(k, rows), self.v.linear(v, rows)];
        matmul(cpu, normed, rows, scales.attention, &mut products, buffers);
        for (x, gain) in [(&mut *q, &self.q_norm), (&mut *k, &self.k_norm)] {
            if let Some(gain) = gain {
                heads.resize(x.len(), 0.0);
                rms_norm(cpu, x, gain, self.eps, heads);
                std::mem::swap(x, heads);
            }
            rope(cpu, x, head_dim, &table.cos, &table.sin, rows, self.rope.pairs);
        }
        let kv_width = self.config.num_key_value_heads * head_dim;
        let mut row = 0;
        for span in spans.iter_mut() {
            let part = row * kv_width..(row + span.rows) * kv_width;
            span.cache.write(layer, span.start, &k[part.clone()], &v[part]);
            row += span.rows;
        }
        let spans: Vec<_> =
            spans.iter().map(|span| Span { cache: span.cache, start: span.start, rows: span.rows }).collect();
        heads.resize(q.len(), 0.0);
        cpu.attention(Attention {
            spans: &spans,
            layer,
            num_attention_heads: self.config.num_attention_heads,
            q,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: self.config.sliding_window,
            out: heads,
        });
        observer(&[T::O], heads, rows)?;
        matmul(cpu, heads, rows, scales.o, &mut [self.o.linear(update, rows)], buffers);
        add_assign(cpu, hidden, update);
        ControlFlow::Continue(())
    }

    fn feed_forward(
        &self,
        cpu: &Cpu,
        hidden: &mut [f32],
        rows: usize,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, normed, gate, up, update, .. } = scratch;
        let scales = &self.input_scales;
        rms_norm(cpu, hidden, &self.ffn_norm, self.eps, normed);
        observer(&[T::Gate, T::Up], normed, rows)?;
        matmul(cpu, normed, rows, scales.ffn, &mut [self.gate.linear(gate, rows), self.up.linear(up, rows)], buffers);
        silu_mul(cpu, gate, up);
        observer(&[T::Down], gate, rows)?;
        matmul(cpu, gate, rows, scales.down, &mut [self.down.linear(update, rows)], buffers);
        add_assign(cpu, hidden, update);
        ControlFlow::Continue(())
    }
}

/// Bytes of tensors that had to be rewritten as blocks, from which on they are packed before more are: enough to keep all
/// threads busy, little beside a model.
const REWRITTEN_AT_A_TIME: usize = 128 << 20;

/// Packed matrices that wait for their place.
pub(crate) struct Matrices(pub(crate) HashMap<TensorId, Matrix>);

impl Matrices {
    /// Packs all of `ids` at once, letting go of the mapped pages they are read from on the way.
    pub(crate) fn load(tensors: &dyn Tensors, cpu: &Cpu, ids: &[TensorId]) -> Result<Self, EngineError> {
        let mut packed = HashMap::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let (mut views, mut orders, mut rewritten) = (Vec::new(), Vec::new(), 0);
            for &id in rest {
                let (view, order) = match tensors.reordered(id)? {
                    Some(Reordered { order, dtype, bytes }) => {
                        (TensorView { dtype, shape: tensors.describe(id)?.1, bytes: bytes.into() }, Some(order))
                    }
                    None => (tensors.tensor(id)?, None),
                };
                rewritten += if let Cow::Owned(bytes) = &view.bytes { bytes.len() } else { 0 };
                views.push(view);
                orders.push(order);
                if rewritten >= REWRITTEN_AT_A_TIME {
                    break;
                }
            }
            let (now, later) = rest.split_at(views.len());
            let weights = |view| -> Weights<'_> {
                let view: &TensorView<'_> = view;
                Weights { dtype: view.dtype, rows: view.rows(), cols: view.row_len(), bytes: &view.bytes }
            };
            let weights: Vec<Weights<'_>> = views.iter().map(weights).collect();
            let matrices = Matrix::pack_all(cpu, &weights, &|index, bytes| tensors.release_part(now[index], bytes))?;
            let ordered = matrices.into_iter().zip(orders).map(|(matrix, order)| match order {
                Some(order) => matrix.with_order(order),
                None => matrix,
            });
            packed.extend(now.iter().copied().zip(ordered));
            rest = later;
        }
        Ok(Self(packed))
    }

    /// A matrix that was among the `ids`.
    pub(crate) fn take(&mut self, id: TensorId) -> Result<Matrix, EngineError> {
        self.0.remove(&id).ok_or(EngineError::NotPacked { id })
    }
}

/// Decodes a vector (norm gain, bias) to f32.
pub(crate) fn load_vector(tensors: &dyn Tensors, id: TensorId) -> Result<Vec<f32>, EngineError> {
    let view = tensors.tensor(id)?;
    let mut values = vec![0.0; view.elements()];
    decode_row(view.dtype, &view.bytes, &mut values).map_err(edgelm_kernels::KernelError::from)?;
    Ok(values)
}
