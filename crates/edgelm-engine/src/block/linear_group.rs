//! Linear layers that read the same input.

use super::{
    Pass,
    matrices::{Matrices, Projection},
};
use crate::EngineError;
use edgelm_kernels::Matrix;
use edgelm_model::{LayerTensor, TensorId, Tensors};
use std::ops::ControlFlow;

pub(super) struct LinearGroup {
    layer: usize,
    roles: Vec<LayerTensor>,
    projections: Vec<Projection>,
    /// Of int8 inputs, where it is fixed.
    input_scale: Option<f32>,
}

impl LinearGroup {
    /// Those of `roles` that the layer has. Errors if their inputs are to be rounded differently.
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        layer: usize,
        roles: &[LayerTensor],
    ) -> Result<Self, EngineError> {
        let id = |role| TensorId::Layer(layer, role);
        let roles: Vec<_> = roles.iter().copied().filter(|&role| tensors.has(id(role))).collect();
        let scales: Vec<_> = roles.iter().map(|&role| tensors.input_scale(id(role))).collect();
        let input_scale = match scales[..] {
            [first, ..] if scales.iter().all(|scale| *scale == first) => first,
            _ => return Err(EngineError::InputScales { layer }),
        };
        let projections = roles.iter().map(|&role| Projection::load(tensors, matrices, layer, role));
        Ok(Self { layer, projections: projections.collect::<Result<_, _>>()?, roles, input_scale })
    }

    pub(super) fn len(&self) -> usize {
        self.roles.len()
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.projections.iter().map(|projection| &projection.weight)
    }

    /// The bias of the first, if it has one.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.projections.first()?.bias()
    }

    /// Shows the input to the observer, then as [`Self::products`].
    pub(super) fn forward<const N: usize>(
        &self,
        pass: &mut Pass<'_, '_>,
        x: &[f32],
        outs: [&mut Vec<f32>; N],
    ) -> ControlFlow<()> {
        (pass.observer)(&self.roles, x, self.rows(x))?;
        self.products(pass, x, outs);
        ControlFlow::Continue(())
    }

    /// W x + b of each, changed where rows go through adapters. Panics if there are not N of them.
    pub(super) fn products<const N: usize>(&self, pass: &mut Pass<'_, '_>, x: &[f32], mut outs: [&mut Vec<f32>; N]) {
        let rows = self.rows(x);
        assert_eq!(self.len(), N, "one output each");
        let mut index = 0;
        let mut products = outs.each_mut().map(|out| {
            index += 1;
            self.projections[index - 1].linear(out, rows)
        });
        match self.input_scale {
            None => pass.cpu.matmul_two_terms(x, rows, &mut products, pass.matmul),
            Some(scale) => pass.cpu.matmul_static(x, rows, scale, &mut products, pass.matmul),
        }
        for ((role, projection), out) in self.roles.iter().zip(&self.projections).zip(outs) {
            let id = TensorId::Layer(self.layer, *role);
            pass.adapted.apply(pass.cpu, id, x, rows, projection.bias(), out, pass.matmul);
        }
    }

    fn rows(&self, x: &[f32]) -> usize {
        x.len() / self.projections.first().map_or(1, |projection| projection.weight.cols().max(1))
    }
}
