//! A gated delta net: a convolution over queries, keys and values, the delta rule, and a norm with a gate.

use super::{
    HalfScratch, Pass,
    conv::Conv,
    linear_group::LinearGroup,
    matrices::{Matrices, load_vector},
    mixer::{MixerScratch, each_state, take_columns},
    sigmoid,
};
use crate::EngineError;
use edgelm_kernels::{GatedDelta, Matrix, activate_mul, gated_delta, rms_norm};
use edgelm_model::{DeltaNet as Config, LayerTensor, TensorId, Tensors, ValueOrder};
use edgelm_tensor::Activation;
use std::ops::ControlFlow;

/// Under the root of the lengths that queries and keys are divided by.
const EPS: f32 = 1e-6;

pub(super) struct DeltaNet {
    config: Config,
    /// Queries, keys and values in one, and the gate.
    input: LinearGroup,
    /// β and the decay of each head.
    rates: LinearGroup,
    conv: Conv,
    /// A [H].
    a: Vec<f32>,
    dt_bias: Vec<f32>,
    /// 1/√K twice, once for the length and once for the product: gain of a norm of queries.
    query_gain: Vec<f32>,
    /// 1/√K: gain of a norm of keys that makes their length 1.
    key_gain: Vec<f32>,
    /// How often the heads of keys are written down, so that those of values meet theirs in order.
    repeats: usize,
    norm: Vec<f32>,
    norm_eps: f32,
    output: LinearGroup,
}

impl DeltaNet {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        config: Config,
    ) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let vector = |tensor| load_vector(tensors, TensorId::Layer(index, tensor));
        let mut group = |roles: &[T]| LinearGroup::load(tensors, matrices, index, roles);
        let root = (config.key_dim as f32).sqrt();
        Ok(Self {
            input: group(&[T::MixerIn, T::MixerGate])?,
            rates: group(&[T::MixerBeta, T::MixerDecay])?,
            output: group(&[T::MixerOut])?,
            conv: Conv::load(tensors, index, config.channels(), Some(tensors.config().style.activation))?,
            a: vector(T::DecayLog)?.into_iter().map(|a| config.decay.rate(a)).collect(),
            dt_bias: vector(T::StepBias)?,
            query_gain: vec![1.0 / (root * root); config.key_dim],
            key_gain: vec![1.0 / root; config.key_dim],
            repeats: match config.order {
                ValueOrder::Grouped => 1,
                ValueOrder::Tiled => config.value_heads / config.key_heads.max(1),
            },
            norm: vector(T::MixerNorm)?,
            norm_eps: tensors.config().norm_eps,
            config,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.input.matrices().chain(self.rates.matrices()).chain(self.output.matrices())
    }

    /// update = out(norm(delta(conv(in(x)))) · silu(gate(x))).
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        slot: usize,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let cpu = pass.cpu;
        let HalfScratch { mixer, .. } = scratch;
        let MixerScratch { projected, gate, queries, keys, values, rates, betas, convolved, out, spare, .. } = mixer;
        self.input.forward(pass, x, [&mut *projected, &mut *gate])?;
        self.rates.products(pass, x, [&mut *betas, &mut *rates]);
        self.conv.forward(cpu, projected, slot, pass.spans, convolved);
        let (key, value, channels) = (self.config.key_width(), self.config.value_width(), self.config.channels());
        // A norm divides by the root of the mean of squares: of K of them, so that ε is a K-th too.
        let eps = EPS / self.config.key_dim as f32;
        for (columns, gain, part) in [(0..key, &self.query_gain, &mut *queries), (key..2 * key, &self.key_gain, keys)] {
            take_columns(convolved, channels, columns, spare);
            part.resize(spare.len(), 0.0);
            rms_norm(cpu, spare, gain, eps, part);
            if self.repeats > 1 {
                std::mem::swap(part, spare);
                part.clear();
                spare.chunks_exact(key).for_each(|row| (0..self.repeats).for_each(|_| part.extend_from_slice(row)));
            }
        }
        let keys_width = key * self.repeats;
        take_columns(convolved, channels, 2 * key..channels, values);
        betas.iter_mut().for_each(|beta| *beta = sigmoid(*beta));
        for row in rates.chunks_exact_mut(self.a.len()) {
            for ((rate, a), bias) in row.iter_mut().zip(&self.a).zip(&self.dt_bias) {
                *rate = a * softplus(*rate + bias);
            }
        }

        out.resize(values.len(), 0.0);
        let heads = self.config.value_heads;
        for (part, recurrent) in each_state(pass.spans.iter_mut(), slot) {
            let of = |width: usize| part.start * width..part.end * width;
            gated_delta(
                cpu,
                GatedDelta {
                    q: &queries[of(keys_width)],
                    k: &keys[of(keys_width)],
                    groups: self.config.key_heads * self.repeats,
                    v: &values[of(value)],
                    heads,
                    g: &rates[of(heads)],
                    beta: &betas[of(heads)],
                    state: recurrent,
                    out: &mut out[of(value)],
                },
            );
        }
        spare.resize(out.len(), 0.0);
        rms_norm(cpu, out, &self.norm, self.norm_eps, spare);
        activate_mul(cpu, Activation::Silu, gate, spare);
        self.output.forward(pass, gate, [&mut *update])?;
        ControlFlow::Continue(())
    }
}

/// ln(1 + exp x); x itself where the difference is below the precision of either.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
