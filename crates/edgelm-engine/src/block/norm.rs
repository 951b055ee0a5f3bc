//! Norms of hidden states and of heads.

use super::matrices::load_vector;
use crate::EngineError;
use edgelm_kernels::{Cpu, layer_norm, rms_norm};
use edgelm_model::{LayerTensor, NormKind, QkNorm, TensorId, Tensors};

/// A prepared norm of rows of one width.
pub(crate) struct Norm {
    subtracts_mean: bool,
    /// What multiplies: also where the file stores it less 1, or not at all.
    gain: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    /// A norm of rows of `width`, with the gain and bias that its kind has.
    pub(crate) fn load(
        tensors: &dyn Tensors,
        kind: NormKind,
        width: usize,
        gain: TensorId,
        bias: TensorId,
    ) -> Result<Self, EngineError> {
        let mut values = if kind.has_gain() { load_vector(tensors, gain)? } else { vec![1.0; width] };
        if matches!(kind, NormKind::RmsPlusOne | NormKind::LayerPlusOne) {
            values.iter_mut().for_each(|gain| *gain += 1.0);
        }
        Ok(Self {
            subtracts_mean: !matches!(kind, NormKind::Rms | NormKind::RmsPlusOne | NormKind::RmsPlain),
            gain: values,
            bias: kind.has_bias().then(|| load_vector(tensors, bias)).transpose()?,
            eps: tensors.config().norm_eps,
        })
    }

    /// The norm of what a layer hands to one of its last matrices, where it has one.
    pub(super) fn inside(tensors: &dyn Tensors, layer: usize, gain: LayerTensor) -> Result<Option<Self>, EngineError> {
        let gain = TensorId::Layer(layer, gain);
        let Some(shape) = tensors.config().tensor_shape(gain) else { return Ok(None) };
        Self::load(tensors, NormKind::Rms, shape[0], gain, gain).map(Some)
    }

    /// The same with another ε than the model's.
    pub(crate) fn with_eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    pub(crate) fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        match self.subtracts_mean {
            true => layer_norm(cpu, x, &self.gain, self.bias.as_deref(), self.eps, out),
            false => rms_norm(cpu, x, &self.gain, self.eps, out),
        }
    }
}

/// A norm of queries or keys.
pub(super) struct HeadNorm {
    norm: Norm,
    /// A gain per component of all heads, where each has its own.
    gains: Option<Vec<f32>>,
}

impl HeadNorm {
    /// `gain` and `bias` are roles in `layer`.
    pub(super) fn load(
        tensors: &dyn Tensors,
        layer: usize,
        (gain, bias): (LayerTensor, LayerTensor),
    ) -> Result<Option<Self>, EngineError> {
        let config = tensors.config();
        let (gain, bias) = (TensorId::Layer(layer, gain), TensorId::Layer(layer, bias));
        let head_dim = config.layers[layer].head_dim;
        Ok(match config.style.qk_norm {
            QkNorm::None => None,
            QkNorm::Head(kind) => Some(Self { norm: Norm::load(tensors, kind, head_dim, gain, bias)?, gains: None }),
            QkNorm::All(kind) => {
                let width = config.tensor_shape(gain).map_or(0, |shape| shape[0]);
                Some(Self { norm: Norm::load(tensors, kind, width, gain, bias)?, gains: None })
            }
            QkNorm::OwnHead(kind) => {
                let whole = Norm::load(tensors, kind, 0, gain, bias)?;
                let norm = Norm { gain: vec![1.0; head_dim], ..whole };
                Some(Self { norm, gains: Some(load_vector(tensors, gain)?) })
            }
        })
    }

    /// In place; `spare` is room for a copy.
    pub(super) fn apply(&self, cpu: &Cpu, x: &mut Vec<f32>, spare: &mut Vec<f32>) {
        self.norm.apply(cpu, x, spare);
        std::mem::swap(x, spare);
        if let Some(gains) = &self.gains {
            for row in x.chunks_exact_mut(gains.len()) {
                row.iter_mut().zip(gains).for_each(|(x, gain)| *x *= gain);
            }
        }
    }
}
