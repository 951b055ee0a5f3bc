//! Adapters beside a base model: which rows of a batch go through which, and what they add there.

use crate::{Engine, EngineError, block::load_vector};
use edgelm_kernels::{Cpu, Linear, Matrix, Scratch};
use edgelm_model::{Adapter, LayerTensor, TensorId};
use edgelm_tensor::DType;
use std::{collections::HashMap, ops::Range};

/// An adapter prepared for an engine. Sequences that have one go through it; others in the same batch do not.
#[derive(Default)]
pub struct LoadedAdapter {
    /// Several where adapters are used together; applied in this order.
    changes: HashMap<TensorId, Vec<Change>>,
    prompts: HashMap<usize, Prompt>,
}

/// What becomes of one matrix's product.
enum Change {
    /// y + B (A x), then (where there are magnitudes) times a factor per row; all of it without the bias.
    Lora { a: Matrix, b: Matrix, factors: Option<Vec<f32>> },
    /// W' x.
    Replaced(Matrix),
}

/// Keys and values `[L, G·E]` of learned positions.
pub(crate) struct Prompt {
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) gate: f32,
}

fn pack(cpu: &Cpu, rows: usize, values: &[f32]) -> Result<Matrix, EngineError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(Matrix::pack(cpu, DType::F32, rows, values.len() / rows.max(1), &bytes)?)
}

impl std::fmt::Debug for LoadedAdapter {
    /// What it changes; its values are of no use to a reader.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadedAdapter({} matrices, {} prompts)", self.changes.len(), self.prompts.len())
    }
}

impl LoadedAdapter {
    /// Prepares adapters that are used together. Errors on learned positions of several, which have no joint meaning.
    pub fn load(engine: &Engine, adapters: &[Adapter]) -> Result<Self, EngineError> {
        let (checkpoint, cpu) = (engine.checkpoint(), engine.cpu());
        let mut loaded = Self::default();
        for adapter in adapters {
            for (&id, values) in &adapter.replaced {
                let rows = checkpoint.describe(id)?.1[0];
                loaded.changes.entry(id).or_default().push(Change::Replaced(pack(cpu, rows, values)?));
            }
            for (&id, lora) in &adapter.lora {
                if id == TensorId::TokenEmbedding {
                    return Err(EngineError::Adapter("changes of the token embedding are not supported; merge them"));
                }
                if matches!(id, TensorId::Layer(_, LayerTensor::LatentK | LayerTensor::LatentV)) {
                    return Err(EngineError::Adapter(
                        "changes of kv_b_proj are not supported beside a base; merge them",
                    ));
                }
                let factors = lora.factors(|row, out| checkpoint.values(id, row..row + 1, out))?;
                let (a, b) = (pack(cpu, lora.rank, &lora.a)?, pack(cpu, lora.b.len() / lora.rank.max(1), &lora.b)?);
                loaded.changes.entry(id).or_default().push(Change::Lora { a, b, factors });
            }
            for (&layer, prompt) in &adapter.prompts {
                let project = |tensor| project(engine, layer, tensor, &prompt.prompt);
                let prompt = Prompt { k: project(LayerTensor::K)?, v: project(LayerTensor::V)?, gate: prompt.gate };
                if loaded.prompts.insert(layer, prompt).is_some() {
                    return Err(EngineError::Adapter("only one with learned positions can be used at a time"));
                }
            }
        }
        Ok(loaded)
    }

    pub(crate) fn prompt(&self, layer: usize) -> Option<&Prompt> {
        self.prompts.get(&layer)
    }

    /// Changes the product `out` [T, N] of `x` [T, K] with a matrix and its bias.
    fn apply(&self, cpu: &Cpu, id: TensorId, x: &[f32], bias: Option<&[f32]>, out: &mut [f32], scratch: &mut Scratch) {
        for change in self.changes.get(&id).into_iter().flatten() {
            match change {
                Change::Replaced(weight) => {
                    let rows = x.len() / weight.cols().max(1);
                    cpu.matmul(x, rows, &mut [Linear { weight, bias, out: &mut *out }], scratch);
                }
                Change::Lora { a, b, factors } => {
                    let rows = x.len() / a.cols().max(1);
                    let (mut inner, mut added) = (vec![0.0; rows * a.rows()], vec![0.0; out.len()]);
                    cpu.matmul(x, rows, &mut [Linear { weight: a, bias: None, out: &mut inner }], scratch);
                    cpu.matmul(&inner, rows, &mut [Linear { weight: b, bias: None, out: &mut added }], scratch);
                    let width = b.rows();
                    for (out, added) in out.chunks_exact_mut(width).zip(added.chunks_exact(width)) {
                        for (column, (out, added)) in out.iter_mut().zip(added).enumerate() {
                            let bias = bias.map_or(0.0, |bias| bias[column]);
                            let factor = factors.as_ref().map_or(1.0, |factors| factors[column]);
                            *out = (*out - bias + added) * factor + bias;
                        }
                    }
                }
            }
        }
    }
}

/// W p + b for rows p, in f32 on what the checkpoint means.
fn project(engine: &Engine, layer: usize, tensor: LayerTensor, rows: &[f32]) -> Result<Vec<f32>, EngineError> {
    let (checkpoint, cpu) = (&**engine.checkpoint(), engine.cpu());
    let id = TensorId::Layer(layer, tensor);
    let shape = checkpoint.describe(id)?.1;
    let mut values = vec![0.0; shape.iter().product()];
    checkpoint.values(id, 0..shape[0], &mut values)?;
    let weight = &pack(cpu, shape[0], &values)?;
    let bias = tensor.bias().map(|bias| TensorId::Layer(layer, bias)).filter(|&bias| checkpoint.has(bias));
    let bias = bias.map(|bias| load_vector(checkpoint, bias)).transpose()?;
    let count = rows.len() / weight.cols().max(1);
    let mut out = vec![0.0; count * weight.rows()];
    let product = Linear { weight, bias: bias.as_deref(), out: &mut out };
    cpu.matmul(rows, count, &mut [product], &mut Scratch::default());
    Ok(out)
}

/// Rows of a batch that go through adapters.
#[derive(Default)]
pub(crate) struct AdaptedRows<'a>(Vec<(Range<usize>, &'a LoadedAdapter)>);

impl<'a> AdaptedRows<'a> {
    /// For sequences in the order of their rows: how many each has, and its adapter.
    pub(crate) fn new(spans: impl Iterator<Item = (usize, Option<&'a LoadedAdapter>)>) -> Self {
        let mut start = 0;
        let mut adapted = Vec::new();
        for (rows, adapter) in spans {
            adapted.extend(adapter.map(|adapter| (start..start + rows, adapter)));
            start += rows;
        }
        Self(adapted)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<usize>, &'a LoadedAdapter)> + '_ {
        self.0.iter().map(|(rows, adapter)| (rows.clone(), *adapter))
    }

    /// Changes the products `out` [T, N] of the rows `x` [T, K] that go through adapters.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn apply(
        &self,
        cpu: &Cpu,
        id: TensorId,
        x: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (columns, width) = (x.len() / rows.max(1), out.len() / rows.max(1));
        for (rows, adapter) in self.iter() {
            let x = &x[rows.start * columns..rows.end * columns];
            let out = &mut out[rows.start * width..rows.end * width];
            adapter.apply(cpu, id, x, bias, out, scratch);
        }
    }
}
