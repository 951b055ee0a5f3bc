//! Mamba-2: a convolution, a selective scan, and a gate with a norm.

use super::{
    HalfScratch, Pass,
    conv::Conv,
    linear_group::LinearGroup,
    matrices::{Matrices, load_vector},
    mixer::{MixerScratch, each_state, take_columns},
    scaled,
};
use crate::EngineError;
use edgelm_kernels::{Cpu, Matrix, SelectiveScan, activate_mul, rms_norm, scale, selective_scan};
use edgelm_model::{GatedNorm, LayerTensor, Mamba2 as Config, TensorId, Tensors};
use edgelm_tensor::Activation;
use std::ops::ControlFlow;

pub(super) struct Mamba2 {
    config: Config,
    input: LinearGroup,
    conv: Conv,
    /// A [H].
    a: Vec<f32>,
    d: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Option<GroupNorm>,
    output: LinearGroup,
    /// Of every column that the input is projected to, where they are not all 1.
    scales: Option<Vec<f32>>,
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
            input: LinearGroup::load(tensors, matrices, index, &[T::MixerIn])?,
            conv: Conv::load(tensors, index, config.channels(), Some(tensors.config().style.activation))?,
            a: vector(T::DecayLog)?.into_iter().map(|a| config.decay.rate(a)).collect(),
            d: vector(T::Skip)?,
            dt_bias: vector(T::StepBias)?,
            norm: (config.norm != GatedNorm::None).then(norm).transpose()?,
            output: LinearGroup::load(tensors, matrices, index, &[T::MixerOut])?,
            scales: config.scales.iter().any(|scale| *scale != 1.0).then(|| scales.collect()),
            config,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.input.matrices().chain(self.output.matrices())
    }

    /// update = out(norm(scan(conv(…)), z)), as [`Config`] says.
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let cpu = pass.cpu;
        let HalfScratch { mixer, input, .. } = scratch;
        let MixerScratch { projected, gate, queries, keys, values, rates, channels, convolved, out, spare, .. } = mixer;
        let config = &self.config;
        let x = scaled(cpu, x, config.input_scale, input);
        self.input.forward(pass, x, [&mut *projected])?;
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
        self.conv.forward(cpu, channels, slot, pass.spans, convolved);
        take_columns(convolved, all, 0..width, values);
        take_columns(convolved, all, width..width + state, keys);
        take_columns(convolved, all, width + state..all, queries);

        out.resize(values.len(), 0.0);
        for (part, recurrent) in each_state(pass.spans.iter_mut(), slot) {
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
        self.output.forward(pass, gate, [&mut *update])?;
        if config.output_scale != 1.0 {
            scale(cpu, update, config.output_scale);
        }
        ControlFlow::Continue(())
    }
}
