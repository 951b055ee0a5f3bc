//! An activation with numbers of each layer's own.

use super::matrices::load_vector;
use crate::EngineError;
use edgelm_model::{LayerTensor, TensorId, Tensors};

/// f(x) = p x² + β x for x > 0, n (e^min(x, ε) − 1 − x) + β x else (Huang and Schlag 2024, arXiv:2411.13010).
pub(super) struct Xielu {
    p: f32,
    n: f32,
    beta: f32,
    eps: f32,
}

impl Xielu {
    /// p = ln(1 + eᵃ) and n = β + ln(1 + eᵇ) of the stored a and b.
    pub(super) fn load(tensors: &dyn Tensors, index: usize) -> Result<Self, EngineError> {
        let number = |tensor| {
            let values = load_vector(tensors, TensorId::Layer(index, tensor))?;
            Ok::<_, EngineError>(values.first().copied().unwrap_or_default())
        };
        let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
        let beta = number(LayerTensor::XieluSlope)?;
        Ok(Self {
            p: softplus(number(LayerTensor::XieluPositive)?),
            n: beta + softplus(number(LayerTensor::XieluNegative)?),
            beta,
            eps: number(LayerTensor::XieluFloor)?,
        })
    }

    /// In place, in f32.
    pub(super) fn apply(&self, x: &mut [f32]) {
        for x in x {
            *x = match *x > 0.0 {
                true => self.p * *x * *x + self.beta * *x,
                false => (x.min(self.eps).exp_m1() - *x) * self.n + self.beta * *x,
            };
        }
    }
}
