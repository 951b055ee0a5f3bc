//! Mamba-2: a convolution, a selective scan, and a gate with a norm.

use super::{
    BlockScratch, Observer, Rows,
    conv::Conv,
    matmul,
    matrices::{Matrices, Projection, load_vector},
    mixer::{MixerScratch, each_state, take_columns},
    scaled, shared_input_scale,
};
use crate::{EngineError, adapter::AdaptedRows};
use edgelm_kernels::{Cpu, SelectiveScan, activate_mul, rms_norm, scale, selective_scan};
use edgelm_model::{GatedNorm, LayerTensor, Mamba2 as Config, TensorId, Tensors};
use edgelm_tensor::Activation;
use std::ops::ControlFlow;

pub(super) struct Mamba2 {
    index: usize,
    config: Config,
    input: Projection,
    conv: Conv,
    /// −exp(A_log) [H].
    a: Vec<f32>,
    d: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Option<GroupNorm>,
    output: Projection,
    /// Of every column that the input is projected to, where they are not all 1.
    scales: Option<Vec<f32>>,
    input_scale: Option<f32>,
    output_scale: Option<f32>,
}

/// RMS norm of each group of channels, with a gain per channel.
struct GroupNorm {
    /// As wide as a group.
    ones: Vec<f32>,
    gain: Vec<f32>,
    eps: f32,
}

impl GroupNorm {
    fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        rms_norm(cpu, x, &self.ones, self.eps, out);
        for row in out.chunks_exact_mut(self.gain.len()) {
            row.iter_mut().zip(&self.gain).for_each(|(x, gain)| *x *= gain);
        }
    }
}

impl Mamba2 {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        config: Config,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let vector = |tensor| load_vector(tensors, TensorId::Layer(index, tensor));
        let norm = || {
            let ones = vec![1.0; config.width() / config.groups];
            Ok::<_, EngineError>(GroupNorm { ones, gain: vector(T::MixerNorm)?, eps: tensors.config().norm_eps })
        };
        let keys = config.groups * config.state_size;
        let widths = [config.width(), config.width(), keys, keys, config.heads];
        let scales = config.scales.iter().zip(widths).flat_map(|(&scale, width)| std::iter::repeat_n(scale, width));
        Ok(Self {
            input: Projection::load(tensors, matrices, index, T::MixerIn)?,
            conv: Conv::load(tensors, index, config.channels(), Some(tensors.config().style.activation))?,
            a: vector(T::DecayLog)?.into_iter().map(|log| -log.exp()).collect(),
            d: vector(T::Skip)?,
            dt_bias: vector(T::StepBias)?,
            norm: (config.norm != GatedNorm::None).then(norm).transpose()?,
            output: Projection::load(tensors, matrices, index, T::MixerOut)?,
            scales: config.scales.iter().any(|scale| *scale != 1.0).then(|| scales.collect()),
            input_scale: shared_input_scale(tensors, index, &[T::MixerIn])?,
            output_scale: shared_input_scale(tensors, index, &[T::MixerOut])?,
            index,
            config,
        })
    }

    pub(super) fn projections(&self) -> [&Projection; 2] {
        [&self.input, &self.output]
    }

    /// update = out(norm(scan(conv(…)), z)), as [`Config`] says.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        spans: &mut [Rows<'_>],
        adapted: &AdaptedRows<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, mixer, input, .. } = scratch;
        let MixerScratch { projected, gate, queries, keys, values, rates, channels, convolved, out, spare, .. } = mixer;
        let config = &self.config;
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        let id = |tensor| TensorId::Layer(self.index, tensor);
        let x = scaled(cpu, x, config.input_scale, input);
        observer(&[T::MixerIn], x, rows)?;
        matmul(cpu, x, rows, self.input_scale, &mut [self.input.linear(projected, rows)], buffers);
        adapted.apply(cpu, id(T::MixerIn), x, rows, self.input.bias(), projected, buffers);
        if let Some(scales) = &self.scales {
            for row in projected.chunks_exact_mut(scales.len()) {
                row.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
            }
        }

        let (width, state, all) = (config.width(), config.groups * config.state_size, config.channels());
        let columns = width + all + config.heads;
        take_columns(projected, columns, 0..width, gate);
        take_columns(projected, columns, width..width + all, channels);
        take_columns(projected, columns, width + all..columns, rates);
        self.conv.forward(cpu, channels, slot, spans, convolved);
        take_columns(convolved, all, 0..width, values);
        take_columns(convolved, all, width..width + state, keys);
        take_columns(convolved, all, width + state..all, queries);

        out.resize(values.len(), 0.0);
        for (part, recurrent) in each_state(spans.iter_mut(), slot) {
            let of = |width: usize| part.start * width..part.end * width;
            selective_scan(
                cpu,
                SelectiveScan {
                    x: &values[of(width)],
                    dt: &rates[of(config.heads)],
                    b: &keys[of(state)],
                    c: &queries[of(state)],
                    groups: config.groups,
                    a: &self.a,
                    d: &self.d,
                    dt_bias: &self.dt_bias,
                    dt_limit: config.time_step_limit,
                    state: recurrent,
                    out: &mut out[of(width)],
                },
            );
        }

        if let (GatedNorm::BeforeGate, Some(norm)) = (config.norm, &self.norm) {
            norm.apply(cpu, out, spare);
            std::mem::swap(out, spare);
        }
        activate_mul(cpu, Activation::Silu, gate, out);
        if let (GatedNorm::AfterGate, Some(norm)) = (config.norm, &self.norm) {
            norm.apply(cpu, gate, spare);
            std::mem::swap(gate, spare);
        }
        observer(&[T::MixerOut], gate, rows)?;
        matmul(cpu, gate, rows, self.output_scale, &mut [self.output.linear(update, rows)], buffers);
        adapted.apply(cpu, id(T::MixerOut), gate, rows, self.output.bias(), update, buffers);
        if config.output_scale != 1.0 {
            scale(cpu, update, config.output_scale);
        }
        ControlFlow::Continue(())
    }
}
