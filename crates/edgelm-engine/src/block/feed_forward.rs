//! The feed-forward half of a layer: from its normed input to what it adds.

use super::{
    BlockScratch, Observer, matmul,
    matrices::{Matrices, Projection},
    shared_input_scale,
};
use crate::{EngineError, adapter::AdaptedRows};
use edgelm_kernels::{Cpu, activate, activate_mul, scale};
use edgelm_model::{LayerTensor, Style, TensorId, Tensors};
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
    layer: usize,
    roles: Roles,
    style: Style,
    gate: Option<Projection>,
    up: Projection,
    down: Projection,
    input_scale: Option<f32>,
    down_scale: Option<f32>,
}

impl FeedForward {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        index: usize,
        roles: Roles,
    ) -> Result<Self, EngineError> {
        let mut projection = |weight| Projection::load(tensors, matrices, index, weight);
        let gate = tensors.has(TensorId::Layer(index, roles.gate)).then(|| projection(roles.gate)).transpose()?;
        Ok(Self {
            style: tensors.config().style,
            gate,
            up: projection(roles.up)?,
            down: projection(roles.down)?,
            input_scale: shared_input_scale(tensors, index, &[roles.gate, roles.up])?,
            down_scale: shared_input_scale(tensors, index, &[roles.down])?,
            layer: index,
            roles,
        })
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// update = down(f(gate(x)) · up(x)), or down(f(up(x))) without a gate.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        update: &mut Vec<f32>,
        rows: usize,
        adapted: &AdaptedRows<'_>,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        let factors = self.style.multipliers;
        let Roles { gate: gate_role, up: up_role, down: down_role } = self.roles;
        let BlockScratch { matmul: buffers, gate, up, .. } = scratch;
        let inner = match &self.gate {
            Some(projection) => {
                observer(&[gate_role, up_role], x, rows)?;
                let mut products = [projection.linear(gate, rows), self.up.linear(up, rows)];
                matmul(cpu, x, rows, self.input_scale, &mut products, buffers);
                let id = |tensor| TensorId::Layer(self.layer, tensor);
                adapted.apply(cpu, id(gate_role), x, rows, projection.bias(), gate, buffers);
                adapted.apply(cpu, id(up_role), x, rows, self.up.bias(), up, buffers);
                if factors.gate != 1.0 {
                    scale(cpu, gate, factors.gate);
                }
                if let Some(limit) = self.style.glu_limit {
                    limit_glu(gate, up, limit);
                }
                activate_mul(cpu, self.style.activation, gate, up);
                gate
            }
            None => {
                observer(&[up_role], x, rows)?;
                matmul(cpu, x, rows, self.input_scale, &mut [self.up.linear(up, rows)], buffers);
                let id = TensorId::Layer(self.layer, up_role);
                adapted.apply(cpu, id, x, rows, self.up.bias(), up, buffers);
                activate(cpu, self.style.activation, up);
                up
            }
        };
        observer(&[down_role], inner, rows)?;
        matmul(cpu, inner, rows, self.down_scale, &mut [self.down.linear(update, rows)], buffers);
        let id = TensorId::Layer(self.layer, down_role);
        adapted.apply(cpu, id, inner, rows, self.down.bias(), update, buffers);
        if factors.down != 1.0 {
            scale(cpu, update, factors.down);
        }
        ControlFlow::Continue(())
    }
}

/// gate ≤ limit, up = 1 + up between −limit and limit (gpt-oss).
fn limit_glu(gate: &mut [f32], up: &mut [f32], limit: f32) {
    gate.iter_mut().for_each(|gate| *gate = gate.min(limit));
    up.iter_mut().for_each(|up| *up = up.clamp(-limit, limit) + 1.0);
}
