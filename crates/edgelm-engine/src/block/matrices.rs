//! Weights on their way from a checkpoint into a block.

use crate::EngineError;
use edgelm_format::{Reordered, TensorView};
use edgelm_kernels::{Cpu, Linear, Matrix, Weights};
use edgelm_model::{LayerTensor, TensorId, Tensors};
use edgelm_tensor::block::decode_row;
use std::{borrow::Cow, collections::HashMap};

/// A linear layer with its optional bias.
pub(crate) struct Projection {
    pub(crate) weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Projection {
    pub(super) fn load(
        tensors: &dyn Tensors,
        matrices: &mut Matrices,
        layer: usize,
        weight: LayerTensor,
    ) -> Result<Self, EngineError> {
        let bias = weight.bias().map(|bias| TensorId::Layer(layer, bias)).filter(|&bias| tensors.has(bias));
        Ok(Self {
            weight: matrices.take(TensorId::Layer(layer, weight))?,
            bias: bias.map(|bias| load_vector(tensors, bias)).transpose()?,
        })
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    pub(super) fn linear<'a>(&'a self, out: &'a mut Vec<f32>, rows: usize) -> Linear<'a> {
        out.resize(rows * self.weight.rows(), 0.0);
        Linear { weight: &self.weight, bias: self.bias.as_deref(), out }
    }
}

/// Bytes of tensors that had to be rewritten as blocks, from which on they are packed before more are: enough to keep all
/// threads busy, little beside a model.
const REWRITTEN_AT_A_TIME: usize = 128 << 20;

/// Packed matrices that wait for their place.
pub(crate) struct Matrices(pub(crate) HashMap<TensorId, Matrix>);

impl Matrices {
    /// Packs all of `ids` at once, letting go of the mapped pages they are read from on the way.
    pub(crate) fn load(tensors: &dyn Tensors, cpu: &Cpu, ids: &[TensorId]) -> Result<Self, EngineError> {
        let mut packed = HashMap::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let (mut views, mut orders, mut rewritten) = (Vec::new(), Vec::new(), 0);
            for &id in rest {
                let (view, order) = match tensors.reordered(id)? {
                    Some(Reordered { order, dtype, bytes }) => {
                        (TensorView { dtype, shape: tensors.describe(id)?.1, bytes: bytes.into() }, Some(order))
                    }
                    None => (tensors.tensor(id)?, None),
                };
                rewritten += if let Cow::Owned(bytes) = &view.bytes { bytes.len() } else { 0 };
                views.push(view);
                orders.push(order);
                if rewritten >= REWRITTEN_AT_A_TIME {
                    break;
                }
            }
            let (now, later) = rest.split_at(views.len());
            let weights = |view| -> Weights<'_> {
                let view: &TensorView<'_> = view;
                Weights { dtype: view.dtype, rows: view.rows(), cols: view.row_len(), bytes: &view.bytes }
            };
            let weights: Vec<Weights<'_>> = views.iter().map(weights).collect();
            let matrices = Matrix::pack_all(cpu, &weights, &|index, bytes| tensors.release_part(now[index], bytes))?;
            let ordered = matrices.into_iter().zip(orders).map(|(matrix, order)| match order {
                Some(order) => matrix.with_order(order),
                None => matrix,
            });
            packed.extend(now.iter().copied().zip(ordered));
            rest = later;
        }
        Ok(Self(packed))
    }

    /// A matrix that was among the `ids`.
    pub(crate) fn take(&mut self, id: TensorId) -> Result<Matrix, EngineError> {
        self.0.remove(&id).ok_or(EngineError::NotPacked { id })
    }
}

/// Packs a matrix that stands outside the layers; none if the model has no such tensor.
pub(crate) fn load_matrix(tensors: &dyn Tensors, cpu: &Cpu, id: TensorId) -> Result<Option<Matrix>, EngineError> {
    if !tensors.has(id) {
        return Ok(None);
    }
    let view = tensors.tensor(id)?;
    Ok(Some(Matrix::pack(cpu, view.dtype, view.rows(), view.row_len(), &view.bytes)?))
}

/// Decodes a vector (norm gain, bias) to f32.
pub(crate) fn load_vector(tensors: &dyn Tensors, id: TensorId) -> Result<Vec<f32>, EngineError> {
    let view = tensors.tensor(id)?;
    let mut values = vec![0.0; view.elements()];
    decode_row(view.dtype, &view.bytes, &mut values).map_err(edgelm_kernels::KernelError::from)?;
    Ok(values)
}
