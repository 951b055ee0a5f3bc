//! Every tensor that the config implies is there, with the shape it implies, and no other.

use super::{StorageKind, Store, stored_name};
use crate::{ModelConfig, ModelError, TensorId};
use std::{collections::HashSet, path::Path};

/// The one GGUF tensor that belongs to the config rather than to the weights.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Checks the tensor directory; returns the ids in walk order.
pub(super) fn tensors(config: &ModelConfig, store: &Store, path: &Path) -> Result<Vec<TensorId>, ModelError> {
    let storage = store.kind();
    let ids = config.tensor_ids();
    let names: HashSet<&str> = store.names().into_iter().collect();
    let mut expected: HashSet<String> = HashSet::new();
    for &id in &ids {
        let name = stored_name(config, storage, id);
        let want = config.tensor_shape(id).unwrap_or_default();
        let Some((dtype, shape)) = store.describe(&name)? else {
            return Err(ModelError::MissingTensor { path: path.to_owned(), name });
        };
        if shape != want {
            return Err(ModelError::TensorShape { name, got: shape.to_vec(), want });
        }
        if !id.is_matrix() && dtype.is_quantized() {
            let what = format!("tensor `{name}` is stored as {dtype}; norms and biases must be F32, F16 or BF16");
            return Err(ModelError::Config { path: path.to_owned(), what });
        }
        expected.insert(name);
    }
    let ignored = |name: &str| match storage {
        StorageKind::Safetensors => {
            config.arch.hf_ignored.iter().any(|end| name.ends_with(end))
                || (config.tie_word_embeddings && name == stored_name(config, storage, TensorId::Output))
        }
        StorageKind::Gguf => name == ROPE_FACTORS && config.arch.gguf_rope_factors,
    };
    let mut unexpected: Vec<&str> =
        names.into_iter().filter(|name| !expected.contains(*name) && !ignored(name)).collect();
    unexpected.sort_unstable();
    match unexpected.first() {
        None => Ok(ids),
        Some(name) => Err(ModelError::UnexpectedTensor { path: path.to_owned(), name: (*name).to_owned() }),
    }
}
