//! Latent attention: of each position one vector is kept, out of which all heads make their keys and values.
//!
//! The one thing a reader would get wrong: keys and values of heads are never made. Queries are taken to where the vectors
//! are, and what attention returns is taken from there to values, so that the bytes kept do not grow with the heads.

use super::{
    HalfScratch, Pass,
    linear_group::LinearGroup,
    matrices::Matrices,
    mixer::{MixerScratch, take_columns},
    norm::Norm,
};
use crate::EngineError;
use edgelm_kernels::{Attention as AttentionArgs, Cpu, Linear, Matrix, Scores, Scratch, Span, rope};
use edgelm_model::{LatentAttention as Config, LayerRope, LayerTensor, NormKind, RopePairs, TensorId, Tensors};
use edgelm_tensor::DType;
use half::f16;
use std::ops::ControlFlow;

/// ε of the norms in here, whatever that of the model's other norms is.
const EPS: f32 = 1e-6;

pub(super) struct LatentAttention {
    config: Config,
    rope: LayerRope,
    pairs: RopePairs,
    scale: f32,
    /// Queries or what they are made of, and what keys and values are made of.
    input: LinearGroup,
    queries: Option<(Norm, LinearGroup)>,
    norm: Norm,
    /// Of each head: [r, nope], what makes its keys, transposed.
    keys: Vec<Matrix>,
    /// Of each head: [value, r].
    values: Vec<Matrix>,
    output: LinearGroup,
}

impl LatentAttention {
    pub(super) fn load(
        tensors: &dyn Tensors,
        cpu: &Cpu,
        matrices: &mut Matrices,
        index: usize,
        config: Config,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let model = tensors.config();
        let norm = |tensor, width| {
            let gain = TensorId::Layer(index, tensor);
            Ok::<_, EngineError>(Norm::load(tensors, NormKind::Rms, width, gain, gain)?.with_eps(EPS))
        };
        let mut group = |roles: &[T]| LinearGroup::load(tensors, matrices, index, roles);
        let (k, v) = (HeadParts::load(tensors, index, T::LatentK)?, HeadParts::load(tensors, index, T::LatentV)?);
        let queries =
            config.query_rank.map(|rank| Ok::<_, EngineError>((norm(T::QDownNorm, rank)?, group(&[T::QUp])?)));
        Ok(Self {
            rope: model.layers[index].rope,
            pairs: model.rope.pairs,
            scale: model.style.attention_scale.unwrap_or(1.0 / (config.query_dim() as f32).sqrt()),
            queries: queries.transpose()?,
            input: group(&[T::Q, T::QDown, T::Latent])?,
            norm: norm(T::LatentNorm, config.rank)?,
            keys: k.each(config.heads, |part| match config.transposed_keys {
                true => k.pack(cpu, config.rank, part),
                false => k.pack(cpu, config.rank, &transposed(part, config.rank)),
            })?,
            values: v.each(config.heads, |part| v.pack(cpu, config.value_dim, part))?,
            output: group(&[T::O])?,
            config,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let up = self.queries.iter().flat_map(|(_, group)| group.matrices());
        self.input.matrices().chain(up).chain(&self.keys).chain(&self.values).chain(self.output.matrices())
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
        let Config { heads, rank, nope_dim, rope_dim, value_dim, .. } = self.config;
        let (width, query_dim) = (self.config.width(), self.config.query_dim());
        let HalfScratch { q, k, heads: seen, mixer, .. } = scratch;
        let MixerScratch {
            projected,
            queries,
            keys: turning,
            values: latent,
            rates: turning_k,
            channels,
            out,
            spare,
            ..
        } = mixer;
        let (cpu, tables) = (pass.cpu, pass.tables);
        let rows = tables.rows();

        self.input.forward(pass, x, [&mut *q, &mut *projected])?;
        if let Some((norm, up)) = &self.queries {
            norm.apply(cpu, q, spare);
            up.forward(pass, spare, [&mut *q])?;
        }
        take_columns(projected, width, 0..rank, channels);
        take_columns(projected, width, rank..width, turning_k);
        take_columns(q, query_dim, nope_dim..query_dim, turning);
        self.norm.apply(cpu, channels, latent);
        // Keys that are stored transposed are multiplied with queries, head by head.
        let readers: &[LayerTensor] = match self.config.transposed_keys {
            true => &[LayerTensor::LatentV],
            false => &[LayerTensor::LatentK, LayerTensor::LatentV],
        };
        (pass.observer)(readers, latent, rows)?;
        if let Some(table) = tables.of(self.rope) {
            for x in [&mut *turning, &mut *turning_k] {
                rope(cpu, x, rope_dim, &table.cos, &table.sin, rows, self.pairs);
            }
        }

        k.clear();
        for (latent, turning) in latent.chunks_exact(rank).zip(turning_k.chunks_exact(rope_dim)) {
            k.extend_from_slice(latent);
            k.extend_from_slice(turning);
        }
        let mut row = 0;
        for span in pass.spans.iter_mut() {
            let part = &k[row * width..(row + span.rows) * width];
            // Values are the first components of keys; the cache keeps both.
            span.cache.write(slot, span.start, part, part);
            row += span.rows;
        }

        queries.resize(rows * heads * width, 0.0);
        for (query, turning) in queries.chunks_exact_mut(width).zip(turning.chunks_exact(rope_dim)) {
            query[rank..].copy_from_slice(turning);
        }
        each_head(cpu, &self.keys, (&*q, query_dim), (&mut *queries, width), [&mut *channels, &mut *out], pass.matmul);
        let spans = pass.spans.iter().map(|span| Span { cache: span.cache, start: span.start, rows: span.rows });
        let spans: Vec<_> = spans.collect();
        seen.resize(queries.len(), 0.0);
        cpu.attention(AttentionArgs {
            spans: &spans,
            layer: slot,
            num_attention_heads: heads,
            q: queries,
            scores: Scores::scaled(self.scale),
            window: None,
            out: seen,
        });
        spare.resize(rows * heads * value_dim, 0.0);
        each_head(
            cpu,
            &self.values,
            (&*seen, width),
            (&mut *spare, value_dim),
            [&mut *channels, &mut *out],
            pass.matmul,
        );
        self.output.forward(pass, spare, [&mut *update])
    }
}

/// What one of the matrices over all heads holds, as numbers.
struct HeadParts {
    values: Vec<f32>,
    dtype: DType,
}

impl HeadParts {
    fn load(tensors: &dyn Tensors, layer: usize, tensor: LayerTensor) -> Result<Self, EngineError> {
        let id = TensorId::Layer(layer, tensor);
        let (stored, shape) = tensors.describe(id)?;
        let mut values = vec![0.0; shape.iter().product()];
        tensors.values(id, 0..shape[0], &mut values)?;
        // Half precision keeps more of any stored format than that format keeps of a weight.
        Ok(Self { values, dtype: if stored == DType::F32 { DType::F32 } else { DType::F16 } })
    }

    fn each<T>(&self, heads: usize, of: impl FnMut(&[f32]) -> Result<T, EngineError>) -> Result<Vec<T>, EngineError> {
        self.values.chunks_exact(self.values.len() / heads.max(1)).map(of).collect()
    }

    fn pack(&self, cpu: &Cpu, rows: usize, values: &[f32]) -> Result<Matrix, EngineError> {
        let bytes: Vec<u8> = match self.dtype {
            DType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        };
        Ok(Matrix::pack(cpu, self.dtype, rows, values.len() / rows.max(1), &bytes)?)
    }
}

/// [n, columns] as [columns, n].
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// The first components of each head's row times that head's matrix, to the first components of its row in `to`. `from` and
/// `to` are [T, H, their width]; the buffers are room for one head's rows.
fn each_head(
    cpu: &Cpu,
    matrices: &[Matrix],
    (from, width): (&[f32], usize),
    (to, to_width): (&mut [f32], usize),
    [input, out]: [&mut Vec<f32>; 2],
    scratch: &mut Scratch,
) {
    let heads = matrices.len();
    for (head, matrix) in matrices.iter().enumerate() {
        input.clear();
        from.chunks_exact(width).skip(head).step_by(heads).for_each(|row| input.extend(&row[..matrix.cols()]));
        let rows = input.len() / matrix.cols().max(1);
        out.resize(rows * matrix.rows(), 0.0);
        cpu.matmul_two_terms(input, rows, &mut [Linear { weight: matrix, bias: None, out }], scratch);
        let outs = out.chunks_exact(matrix.rows());
        let places = to.chunks_exact_mut(to_width).skip(head).step_by(heads);
        places.zip(outs).for_each(|(place, out)| place[..out.len()].copy_from_slice(out));
    }
}
