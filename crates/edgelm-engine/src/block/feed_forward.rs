//! The feed-forward half of a layer: from its normed input to what it adds.

use super::{
    BlockScratch, Observer, matmul,
    matrices::{Matrices, Projection},
    shared_input_scale,
};
use crate::EngineError;
use edgelm_kernels::{Cpu, activate, activate_mul};
use edgelm_model::{LayerTensor, Style, TensorId, Tensors};
use std::ops::ControlFlow;

pub(super) struct FeedForward {
    style: Style,
    gate: Option<Projection>,
    up: Projection,
    down: Projection,
    input_scale: Option<f32>,
    down_scale: Option<f32>,
}

impl FeedForward {
    pub(super) fn load(tensors: &dyn Tensors, matrices: &mut Matrices, index: usize) -> Result<Self, EngineError> {
        use LayerTensor as T;
        let mut projection = |weight| Projection::load(tensors, matrices, index, weight);
        let gate = tensors.has(TensorId::Layer(index, T::Gate)).then(|| projection(T::Gate)).transpose()?;
        Ok(Self {
            style: tensors.config().style,
            gate,
            up: projection(T::Up)?,
            down: projection(T::Down)?,
            input_scale: shared_input_scale(tensors, index, &[T::Gate, T::Up])?,
            down_scale: shared_input_scale(tensors, index, &[T::Down])?,
        })
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// update = down(f(gate(x)) · up(x)), or down(f(up(x))) without a gate.
    pub(super) fn forward(
        &self,
        cpu: &Cpu,
        x: &[f32],
        update: &mut Vec<f32>,
        rows: usize,
        scratch: &mut BlockScratch,
        observer: &mut Observer<'_>,
    ) -> ControlFlow<()> {
        use LayerTensor as T;
        let BlockScratch { matmul: buffers, gate, up, .. } = scratch;
        let inner = match &self.gate {
            Some(projection) => {
                observer(&[T::Gate, T::Up], x, rows)?;
                let mut products = [projection.linear(gate, rows), self.up.linear(up, rows)];
                matmul(cpu, x, rows, self.input_scale, &mut products, buffers);
                activate_mul(cpu, self.style.activation, gate, up);
                gate
            }
            None => {
                observer(&[T::Up], x, rows)?;
                matmul(cpu, x, rows, self.input_scale, &mut [self.up.linear(up, rows)], buffers);
                activate(cpu, self.style.activation, up);
                up
            }
        };
        observer(&[T::Down], inner, rows)?;
        matmul(cpu, inner, rows, self.down_scale, &mut [self.down.linear(update, rows)], buffers);
        ControlFlow::Continue(())
    }
}
