//! What comes before the first layer: embeddings, positions, and their norm.

use crate::{
    EngineError,
    block::{Norm, load_matrix},
};
use edgelm_kernels::{Cpu, Linear, Matrix, Scratch};
use edgelm_model::{TensorId, Tensors};

/// How tokens become hidden states.
pub(crate) struct Front {
    scale: f32,
    /// Unused rows before the first position's.
    positions: Option<usize>,
    norm: Option<Norm>,
    /// From embeddings to the width of the model.
    projection: Option<Matrix>,
}

impl Front {
    /// Reads the norm, if there is one.
    pub(crate) fn load(tensors: &dyn Tensors, cpu: &Cpu) -> Result<Self, EngineError> {
        let config = tensors.config();
        let norm = || {
            let (gain, bias) = (TensorId::EmbeddingNorm, TensorId::EmbeddingNormBias);
            Norm::load(tensors, config.style.norm, config.hidden_size, gain, bias)
        };
        Ok(Self {
            scale: config.style.embedding_scale,
            positions: config.style.position_embedding,
            norm: config.style.embedding_norm.then(norm).transpose()?,
            projection: load_matrix(tensors, cpu, TensorId::InputProjection)?,
        })
    }

    /// Writes the hidden states `[T, D]` of tokens at the positions from `start` on. Rows are decoded from the mapped file:
    /// only the pages of those in use become resident. Errors on ids outside the vocabulary.
    pub(crate) fn embed(
        &self,
        tensors: &dyn Tensors,
        cpu: &Cpu,
        tokens: &[u32],
        start: usize,
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        let d = tensors.config().hidden_size;
        let mut learned = vec![0.0; if self.positions.is_some() { d } else { 0 }];
        if let Some(weight) = &self.projection {
            let embeddings = token_embeddings(tensors, tokens)?;
            let mut products = [Linear { weight, bias: None, out: &mut *out }];
            cpu.matmul_two_terms(&embeddings, tokens.len(), &mut products, &mut Scratch::default());
        }
        for (offset, (&id, row)) in tokens.iter().zip(out.chunks_exact_mut(d)).enumerate() {
            if self.projection.is_none() {
                embed_token(tensors, id, row)?;
            }
            if self.scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= self.scale);
            }
            if let Some(unused) = self.positions {
                decode(tensors, TensorId::PositionEmbedding, unused + start + offset, &mut learned)?;
                row.iter_mut().zip(&learned).for_each(|(x, position)| *x += position);
            }
        }
        if let Some(norm) = &self.norm {
            let mut normed = Vec::new();
            norm.apply(cpu, out, &mut normed);
            out.copy_from_slice(&normed);
        }
        Ok(())
    }
}

/// Rows of the token embedding `[T, W]`, as they are stored.
pub fn token_embeddings(tensors: &dyn Tensors, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
    let d = tensors.config().embedding_size;
    let mut rows = vec![0.0; tokens.len() * d];
    for (&id, row) in tokens.iter().zip(rows.chunks_exact_mut(d)) {
        embed_token(tensors, id, row)?;
    }
    Ok(rows)
}

fn embed_token(tensors: &dyn Tensors, id: u32, out: &mut [f32]) -> Result<(), EngineError> {
    let vocab_size = tensors.config().vocab_size;
    match (id as usize) < vocab_size {
        true => decode(tensors, TensorId::TokenEmbedding, id as usize, out),
        false => Err(EngineError::TokenId { id, vocab_size }),
    }
}

fn decode(tensors: &dyn Tensors, id: TensorId, row: usize, out: &mut [f32]) -> Result<(), EngineError> {
    Ok(tensors.values(id, row..row + 1, out)?)
}
