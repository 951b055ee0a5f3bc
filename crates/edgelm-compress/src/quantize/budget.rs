//! What sizes of a file leave for its matrices.

use crate::CompressError;
use edgelm_format::gguf::{Value, header_bytes};
use edgelm_model::Checkpoint;
use edgelm_tensor::DType;

/// Bytes that the matrices of a file may have for the file to have `file_bytes`: what is left of it after metadata, norms
/// and biases, and the padding between tensors.
pub fn matrix_budget(checkpoint: &Checkpoint, file_bytes: u64) -> Result<u64, CompressError> {
    let mut declared = Vec::new();
    for (name, shape, _) in checkpoint.gguf_extra_tensors() {
        declared.push((name, DType::F32, shape));
    }
    for &id in checkpoint.tensor_ids() {
        let shape = checkpoint.describe(id)?.1.to_vec();
        declared.push((checkpoint.config().arch.gguf_tensor_name(id), DType::F32, shape));
    }
    let mut metadata = checkpoint.gguf_metadata()?;
    metadata.push(("general.file_type".into(), Value::U32(0)));
    let (header, padding) = header_bytes(&metadata, &declared)?;
    Ok(file_bytes.saturating_sub(header + padding + vector_bytes(checkpoint)?))
}

/// Bytes of norms and biases, which are stored in F32.
fn vector_bytes(checkpoint: &Checkpoint) -> Result<u64, CompressError> {
    let vectors = checkpoint.tensor_ids().iter().filter(|id| !id.is_matrix());
    vectors.map(|&id| Ok(4 * checkpoint.describe(id)?.1.iter().product::<usize>() as u64)).sum()
}
