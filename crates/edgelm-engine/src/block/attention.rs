//! The attention half of a layer: from its normed input to what it adds.

use super::{
    BlockScratch, Observer, Rows, Tables, matmul,
    matrices::{Matrices, Projection, load_vector},
    norm::HeadNorm,
    scaled, shared_input_scale, sigmoid,
};
use crate::{
    EngineError,
    adapter::{AdaptedRows, Prompt},
};
use edgelm_kernels::{Alibi as AlibiSlopes, Attention as AttentionArgs, Cpu, Scores, Span, clamp, rope, scale};
use edgelm_model::{Alibi, LayerConfig, LayerTensor, RopePairs, Style, TensorId, Tensors};
use std::ops::{ControlFlow, Range};

pub(super) struct Attention {
    index: usize,
    config: LayerConfig,
    style: Style,
    pairs: RopePairs,
    q: Projection,
    k: Projection,
    v: Projection,
    /// On what comes out, before `o`.
    gate: Option<Projection>,
    o: Projection,
    q_norm: Option<HeadNorm>,
    k_norm: Option<HeadNorm>,
    sinks: Option<Vec<f32>>,
    slopes: Option<Vec<f32>>,
    scale: f32,
    input_scale: Option<f32>,
    output_scale: Option<f32>,
}

impl Attention {
    pub(super) fn load(tensors: &dyn Tensors, matrices: &mut Matrices, index: usize) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let config = tensors.config();
        let layer = config.layers[index].clone();
        let style = config.style;
        let mut projection = |weight| Projection::load(tensors, matrices, index, weight);
        let sinks = TensorId::Layer(index, T::Sinks);
        let scale = style.attention_scale.unwrap_or(1.0 / (layer.head_dim as f32).sqrt());
        Ok(Self {
            q: projection(T::Q)?,
            k: projection(T::K)?,
            v: projection(T::V)?,
            gate: style.output_gate.map(|_| projection(T::QGate)).transpose()?,
            o: projection(T::O)?,
            q_norm: HeadNorm::load(tensors, index, (T::QNorm, T::QNormBias))?,
            k_norm: HeadNorm::load(tensors, index, (T::KNorm, T::KNormBias))?,
            sinks: tensors.has(sinks).then(|| load_vector(tensors, sinks)).transpose()?,
            slopes: style.alibi.map(|_| Style::alibi_slopes(layer.num_attention_heads)),
            scale: if style.scale_by_layer { scale / (index as f32 + 1.0) } else { scale },
            input_scale: shared_input_scale(tensors, index, &[T::Q, T::K, T::V, T::QGate])?,
            output_scale: shared_input_scale(tensors, index, &[T::O])?,
            pairs: config.rope.pairs,
            index,
            config: layer,
            style,
        })
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.q, &self.k, &self.v, &self.o].into_iter().chain(&self.gate)
    }

    /// update = attention(x). `slot` is this layer's place in the cache.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        spans: &mut [Rows<'_>],
        adapted: &AdaptedRows<'_>,
        tables: &Tables<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, q, k, v, gate: gates, heads, input, .. } = scratch;
        let rows = tables.rows();
        let factors = self.style.multipliers;
        let x = scaled(cpu, x, factors.attention_input, input);
        let group = if self.gate.is_some() { &[T::Q, T::K, T::V, T::QGate][..] } else { &[T::Q, T::K, T::V] };
        observer(group, x, rows)?;
        let mut products = vec![self.q.linear(q, rows), self.k.linear(k, rows), self.v.linear(v, rows)];
        products.extend(self.gate.as_ref().map(|gate| gate.linear(gates, rows)));
        matmul(cpu, x, rows, self.input_scale, &mut products, buffers);
        let id = |tensor| TensorId::Layer(self.index, tensor);
        for (tensor, projection, out) in [(T::Q, &self.q, &mut *q), (T::K, &self.k, k), (T::V, &self.v, v)] {
            adapted.apply(cpu, id(tensor), x, rows, projection.bias(), out, buffers);
        }
        if let Some(gate) = &self.gate {
            adapted.apply(cpu, id(T::QGate), x, rows, gate.bias(), gates, buffers);
        }
        if factors.key != 1.0 {
            scale(cpu, k, factors.key);
        }
        if let Some(limit) = self.style.clip_qkv {
            [&mut *q, &mut *k, &mut *v].into_iter().for_each(|values| clamp(cpu, values, limit));
        }
        for (x, norm) in [(&mut *q, &self.q_norm), (&mut *k, &self.k_norm)] {
            if self.style.rope_before_norm {
                self.rotate(cpu, x, tables);
            }
            if let Some(norm) = norm {
                norm.apply(cpu, x, heads);
            }
            if !self.style.rope_before_norm {
                self.rotate(cpu, x, tables);
            }
        }
        if let Some(factors) = &tables.query_factors {
            let width = q.len() / rows.max(1);
            for (row, factor) in q.chunks_exact_mut(width).zip(factors) {
                row.iter_mut().for_each(|q| *q *= factor);
            }
        }
        let kv_width = self.config.num_key_value_heads * self.config.head_dim;
        let mut row = 0;
        for span in spans.iter_mut() {
            let part = row * kv_width..(row + span.rows) * kv_width;
            span.cache.write(slot, span.start, &k[part.clone()], &v[part]);
            row += span.rows;
        }
        let spans: Vec<_> =
            spans.iter().map(|span| Span { cache: span.cache, start: span.start, rows: span.rows }).collect();
        let bfloat16 = self.style.alibi == Some(Alibi::Falcon);
        heads.resize(q.len(), 0.0);
        cpu.attention(AttentionArgs {
            spans: &spans,
            layer: slot,
            num_attention_heads: self.config.num_attention_heads,
            q,
            scores: Scores {
                scale: self.scale,
                softcap: self.style.attention_softcap,
                alibi: self.slopes.as_deref().map(|slopes| AlibiSlopes { slopes, bfloat16 }),
                sinks: self.sinks.as_deref(),
            },
            window: self.config.sliding_window,
            out: heads,
        });
        let prompted: Vec<_> = adapted.iter().filter_map(|(rows, by)| Some((rows, by.prompt(self.index)?))).collect();
        for (rows, prompt) in &prompted {
            self.see_prompt(prompt, rows.clone(), q, heads);
        }
        if self.gate.is_some() {
            // One component each, or a head.
            let run = heads.len() / gates.len().max(1);
            for (out, gate) in heads.chunks_exact_mut(run).zip(gates.iter()) {
                let gate = sigmoid(*gate);
                out.iter_mut().for_each(|out| *out *= gate);
            }
        }
        observer(&[T::O], heads, rows)?;
        matmul(cpu, heads, rows, self.output_scale, &mut [self.o.linear(update, rows)], buffers);
        adapted.apply(cpu, id(T::O), heads, rows, self.o.bias(), update, buffers);
        if let Some(bias) = self.o.bias() {
            // What a prompt adds goes through the output layer by itself, so that its bias is added once more.
            for row in prompted.iter().flat_map(|(rows, _)| rows.clone()) {
                update[row * bias.len()..][..bias.len()].iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
        if factors.attention_output != 1.0 {
            scale(cpu, update, factors.attention_output);
        }
        ControlFlow::Continue(())
    }

    /// heads += gate · softmax(scale · q · kᵀ) v over the learned positions, for some rows. They are few: scalar code.
    fn see_prompt(&self, prompt: &Prompt, rows: Range<usize>, q: &[f32], heads: &mut [f32]) {
        let LayerConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        let (group, width) = (num_attention_heads / num_key_value_heads, num_key_value_heads * head_dim);
        for row in rows {
            for head in 0..num_attention_heads {
                let at = (row * num_attention_heads + head) * head_dim;
                let part = (head / group) * head_dim..(head / group + 1) * head_dim;
                let scores = prompt.k.chunks_exact(width).map(|k| {
                    let product: f32 = q[at..at + head_dim].iter().zip(&k[part.clone()]).map(|(q, k)| q * k).sum();
                    product * self.scale
                });
                let scores: Vec<f32> = scores.collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f32 = weights.iter().sum();
                for (weight, v) in weights.iter().zip(prompt.v.chunks_exact(width)) {
                    let weight = prompt.gate * weight / sum;
                    let out = &mut heads[at..at + head_dim];
                    out.iter_mut().zip(&v[part.clone()]).for_each(|(out, v)| *out += weight * v);
                }
            }
        }
    }

    fn rotate(&self, cpu: &Cpu, x: &mut [f32], tables: &Tables<'_>) {
        if let Some(table) = tables.of(self.config.rope) {
            rope(cpu, x, self.config.head_dim, &table.cos, &table.sin, tables.rows(), self.pairs);
        }
    }
}
