//! The feed-forward half of a layer: from its normed input to what it adds.

use super::{HalfScratch, Pass, linear_group::LinearGroup, matrices::Matrices, norm::Norm, xielu::Xielu};
use crate::EngineError;
use edgelm_kernels::{Matrix, activate, activate_mul, scale};
use edgelm_model::{LayerTensor, Style, Tensors};
use std::ops::ControlFlow;

/// Which tensors of a layer make a feed-forward network.
#[derive(Clone, Copy)]
pub(super) struct Roles {
    pub(super) gate: LayerTensor,
    pub(super) up: LayerTensor,
    pub(super) down: LayerTensor,
}

impl Roles {
    /// Those of the only one.
    pub(super) const DENSE: Self = Self { gate: LayerTensor::Gate, up: LayerTensor::Up, down: LayerTensor::Down };
}

pub(super) struct FeedForward {
    style: Style,
    xielu: Option<Xielu>,
    /// Gate, where there is one, and up.
    input: LinearGroup,
    /// Before `down`.
    sub_norm: Option<Norm>,
    down: LinearGroup,
}

impl FeedForward {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        roles: Roles,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            style: tensors.config().style,
            xielu: tensors.config().style.xielu.then(|| Xielu::load(tensors, index)).transpose()?,
            input: LinearGroup::load(tensors, matrices, index, &[roles.gate, roles.up])?,
            sub_norm: Norm::inside(tensors, index, LayerTensor::FfnSubNorm)?,
            down: LinearGroup::load(tensors, matrices, index, &[roles.down])?,
        })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.input.matrices().chain(self.down.matrices())
    }

    /// update = down(f(gate(x)) · up(x)), or down(f(up(x))) without a gate.
    pub(super) fn forward(
        &self,
        x: &[f32],
        update: &mut Vec<f32>,
        pass: &mut Pass<'_, '_>,
        scratch: &mut HalfScratch,
    ) -> ControlFlow<()> {
        let factors = self.style.multipliers;
        let HalfScratch { gate, up, .. } = scratch;
        let (inner, spare) = if self.style.gated {
            self.input.forward(pass, x, [&mut *gate, &mut *up])?;
            if factors.gate != 1.0 {
                scale(pass.cpu, gate, factors.gate);
            }
            if let Some(limit) = self.style.glu_limit {
                limit_glu(gate, up, limit);
            }
            activate_mul(pass.cpu, self.style.activation, gate, up);
            (gate, up)
        } else {
            self.input.forward(pass, x, [&mut *up])?;
            match &self.xielu {
                Some(xielu) => xielu.apply(up),
                None => activate(pass.cpu, self.style.activation, up),
            }
            (up, gate)
        };
        if let Some(norm) = &self.sub_norm {
            norm.apply(pass.cpu, inner, spare);
            std::mem::swap(inner, spare);
        }
        self.down.forward(pass, inner, [&mut *update])?;
        if factors.down != 1.0 {
            scale(pass.cpu, update, factors.down);
        }
        ControlFlow::Continue(())
    }
}

/// gate ≤ limit, up = 1 + up between −limit and limit (gpt-oss).
fn limit_glu(gate: &mut [f32], up: &mut [f32], limit: f32) {
    gate.iter_mut().for_each(|gate| *gate = gate.min(limit));
    up.iter_mut().for_each(|up| *up = up.clamp(-limit, limit) + 1.0);
}
