//! The attention half of a layer: from its normed input to what it adds.

use super::{
    HalfScratch, Pass, Tables,
    linear_group::LinearGroup,
    matrices::{Matrices, load_vector},
    norm::{HeadNorm, Norm},
    scaled, sigmoid, softmax,
};
use crate::{EngineError, adapter::Prompt};
use edgelm_kernels::{Alibi as AlibiSlopes, Attention as AttentionArgs, Cpu, Matrix, Scores, Span, clamp, rope, scale};
use edgelm_model::{Alibi, LayerConfig, LayerTensor, RopePairs, Style, TensorId, Tensors};
use std::ops::{ControlFlow, Range};

pub(super) struct Attention {
    index: usize,
    config: LayerConfig,
    style: Style,
    pairs: RopePairs,
    /// Queries, keys, values and, where there is one, the gate on what comes out, before `output`.
    input: LinearGroup,
    output: LinearGroup,
    q_norm: Option<HeadNorm>,
    k_norm: Option<HeadNorm>,
    sinks: Option<Vec<f32>>,
    slopes: Option<Vec<f32>>,
    /// Before `output`.
    sub_norm: Option<Norm>,
    scale: f32,
}

impl Attention {
    pub(super) fn load(tensors: &dyn Tensors, matrices: &mut Matrices, index: usize) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let config = tensors.config();
        let layer = config.layers[index].clone();
        let style = config.style;
        let sinks = TensorId::Layer(index, T::Sinks);
        let scale = style.attention_scale.unwrap_or(1.0 / (layer.head_dim as f32).sqrt());
        Ok(Self {
            input: LinearGroup::load(tensors, matrices, index, &[T::Q, T::K, T::V, T::QGate])?,
            output: LinearGroup::load(tensors, matrices, index, &[T::O])?,
            q_norm: HeadNorm::load(tensors, index, (T::QNorm, T::QNormBias))?,
            k_norm: HeadNorm::load(tensors, index, (T::KNorm, T::KNormBias))?,
            sinks: tensors.has(sinks).then(|| load_vector(tensors, sinks)).transpose()?,
            slopes: style.alibi.map(|_| Style::alibi_slopes(layer.num_attention_heads)),
            sub_norm: Norm::inside(tensors, index, T::AttnSubNorm)?,
            scale: if style.scale_by_layer { scale / (index as f32 + 1.0) } else { scale },
            pairs: config.rope.pairs,
            index,
            config: layer,
            style,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.input.matrices().chain(self.output.matrices())
    }

    /// update = attention(x). `slot` is this layer's place in the cache.
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let HalfScratch { q, k, v, gate: gates, heads, input, .. } = scratch;
        let (cpu, tables) = (pass.cpu, pass.tables);
        let rows = tables.rows();
        let factors = self.style.multipliers;
        let x = scaled(cpu, x, factors.attention_input, input);
        let is_gated = self.style.output_gate.is_some();
        match is_gated {
            true => self.input.forward(pass, x, [&mut *q, &mut *k, &mut *v, &mut *gates])?,
            false => self.input.forward(pass, x, [&mut *q, &mut *k, &mut *v])?,
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
        for span in pass.spans.iter_mut() {
            let part = row * kv_width..(row + span.rows) * kv_width;
            span.cache.write(slot, span.start, &k[part.clone()], &v[part]);
            row += span.rows;
        }
        let spans = pass.spans.iter().map(|span| Span { cache: span.cache, start: span.start, rows: span.rows });
        let spans: Vec<_> = spans.collect();
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
        let prompted: Vec<_> =
            pass.adapted.iter().filter_map(|(rows, by)| Some((rows, by.prompt(self.index)?))).collect();
        for (rows, prompt) in &prompted {
            self.see_prompt(prompt, rows.clone(), q, heads);
        }
        if is_gated {
            // One component each, or a head.
            let run = heads.len() / gates.len().max(1);
            for (out, gate) in heads.chunks_exact_mut(run).zip(gates.iter()) {
                let gate = sigmoid(*gate);
                out.iter_mut().for_each(|out| *out *= gate);
            }
        }
        if let Some(norm) = &self.sub_norm {
            norm.apply(cpu, heads, q);
            std::mem::swap(heads, q);
        }
        self.output.forward(pass, heads, [&mut *update])?;
        if let Some(bias) = self.output.bias() {
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
                let weights = softmax(&scores.collect::<Vec<f32>>());
                for (weight, v) in weights.iter().zip(prompt.v.chunks_exact(width)) {
                    let weight = prompt.gate * weight;
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
