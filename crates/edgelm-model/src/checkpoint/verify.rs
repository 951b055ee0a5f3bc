//! Every tensor that the config implies is there, with the shape it implies, and no other.

use super::{StorageKind, Store};
use crate::arch::{Prefix, Stored};
use crate::{ModelConfig, ModelError, TensorId};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

/// GGUF tensors that belong to the config rather than to the weights.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// What names begin with in this file: the usual where none of those known has a token embedding.
pub(super) fn prefix(config: &ModelConfig, store: &Store) -> Prefix {
    let names = super::names(config, store.kind());
    let found: HashSet<&str> = store.names().into_iter().collect();
    let embedding = |prefix: &Prefix| names.name(*prefix, TensorId::TokenEmbedding);
    names
        .prefixes
        .iter()
        .copied()
        .find(|prefix| found.contains(embedding(prefix).as_str()))
        .unwrap_or(names.prefixes[0])
}

/// Shapes that the config implies.
pub(super) fn shapes(config: &ModelConfig, ids: &[TensorId]) -> HashMap<TensorId, Vec<usize>> {
    ids.iter().filter_map(|&id| Some((id, config.tensor_shape(id)?))).collect()
}

/// Checks the tensor directory; returns the ids in walk order.
pub(super) fn tensors(
    config: &ModelConfig,
    store: &Store,
    prefix: Prefix,
    path: &Path,
) -> Result<Vec<TensorId>, ModelError> {
    let storage = store.kind();
    let ids = config.tensor_ids();
    let names = super::names(config, storage);
    let found: HashSet<&str> = store.names().into_iter().collect();
    let mut expected: HashSet<String> = HashSet::new();
    for &id in &ids {
        let stored = super::stored(config, store, prefix, id);
        for name in stored.names() {
            check(&stored, &name, id, store, path)?;
            expected.insert(name);
        }
    }
    let ignored = |name: &str| match storage {
        StorageKind::Safetensors => {
            config.arch.hf_ignored.iter().any(|end| name.ends_with(end))
                || is_of_other_modality(prefix, name)
                || (config.tie_word_embeddings && name == names.name(prefix, TensorId::Output))
        }
        StorageKind::Gguf => match name {
            ROPE_FACTORS => config.arch.gguf_rope_factors,
            SHORT_FACTORS | LONG_FACTORS => config.arch.gguf_long_factors,
            _ => false,
        },
    };
    let mut unexpected: Vec<&str> =
        found.into_iter().filter(|name| !expected.contains(*name) && !ignored(name)).collect();
    unexpected.sort_unstable();
    match unexpected.first() {
        None => Ok(ids),
        Some(name) => Err(ModelError::UnexpectedTensor { path: path.to_owned(), name: (*name).to_owned() }),
    }
}

/// True for a tensor beside a decoder that is one part of a larger model.
fn is_of_other_modality((body, head): Prefix, name: &str) -> bool {
    body.contains("language_model") && !name.starts_with(body) && (head.is_empty() || !name.starts_with(head))
}

/// One tensor of the file is what the model wants it to be.
fn check(stored: &Stored, name: &str, id: TensorId, store: &Store, path: &Path) -> Result<(), ModelError> {
    let Some((dtype, shape)) = store.describe(name)? else {
        return Err(ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() });
    };
    // A matrix of one row may be stored as a vector.
    if shape != stored.shape
        && (store.kind() != StorageKind::Gguf || stored.shape.first() != Some(&1) || *shape != stored.shape[1..])
    {
        return Err(ModelError::TensorShape { name: name.to_owned(), got: shape.to_vec(), want: stored.shape.clone() });
    }
    if stored.transposed && dtype.is_quantized() {
        let what = format!("tensor `{name}` is stored as {dtype} and [in, out]: its blocks lie across its rows");
        return Err(ModelError::Config { path: path.to_owned(), what });
    }
    if !id.is_matrix() && dtype.is_quantized() {
        let what = format!("tensor `{name}` is stored as {dtype}; norms and biases must be F32, F16 or BF16");
        return Err(ModelError::Config { path: path.to_owned(), what });
    }
    Ok(())
}
