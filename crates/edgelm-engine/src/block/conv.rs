//! The convolution over positions that mixers other than attention begin with.

use super::{Rows, matrices::load_vector};
use crate::EngineError;
use edgelm_kernels::{Cpu, causal_conv1d};
use edgelm_model::{LayerTensor, TensorId, Tensors};
use edgelm_tensor::Activation;

pub(super) struct Conv {
    /// [K, C]; files have [C, 1, K].
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    channels: usize,
    activation: Option<Activation>,
}

impl Conv {
    /// Of `channels` channels in layer `index`, with an activation after it.
    pub(super) fn load(
        tensors: &dyn Tensors,
        index: usize,
        channels: usize,
        activation: Option<Activation>,
    ) -> Result<Self, EngineError> {
        let (weight, bias) = (LayerTensor::Conv, TensorId::Layer(index, LayerTensor::ConvBias));
        let stored = load_vector(tensors, TensorId::Layer(index, weight))?;
        let taps = stored.len() / channels.max(1);
        let weight = (0..stored.len()).map(|at| stored[at % channels * taps + at / channels]).collect();
        let bias = tensors.has(bias).then(|| load_vector(tensors, bias)).transpose()?;
        Ok(Self { weight, bias, channels, activation })
    }

    /// Every sequence by itself. `slot` is the layer's state.
    pub(super) fn forward(&self, cpu: &Cpu, x: &[f32], slot: usize, spans: &mut [Rows<'_>], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        let mut row = 0;
        for span in spans {
            let part = row * self.channels..(row + span.rows) * self.channels;
            let (x, out) = (&x[part.clone()], &mut out[part]);
            let state = &mut span.states[slot].conv;
            causal_conv1d(cpu, x, &self.weight, self.bias.as_deref(), state, self.activation, out);
            row += span.rows;
        }
    }
}
