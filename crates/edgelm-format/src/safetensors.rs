//! Safetensors files, one or many shards.
use crate::{FormatError, Source, TensorView};
use edgelm_tensor::DType;
use std::{collections::BTreeMap, path::Path};

/// One logical checkpoint over one or several mapped shards.
pub struct SafeTensors {
    _private: (),
}

impl SafeTensors {
    /// Opens `model.safetensors`, or every shard that `model.safetensors.index.json` names, in a folder.
    pub fn open_dir(dir: &Path) -> Result<Self, FormatError> {
        let _ = dir;
        todo!()
    }
    /// Reads the given shards (no index file needed). Duplicate names across shards are errors.
    pub fn from_sources(shards: Vec<Source>) -> Result<Self, FormatError> {
        let _ = shards;
        todo!()
    }
    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
    /// A tensor by name. Errors (naming tensor and dtype) if it is stored in a type `DType` lacks (I64, BOOL, F8 …).
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let _ = name;
        todo!()
    }
    /// The shard that holds a tensor (to `release` its bytes).
    pub fn source_of(&self, name: &str) -> Option<&Source> {
        let _ = name;
        todo!()
    }
    /// `__metadata__` of all shards merged.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        todo!()
    }
    /// Sum of the file sizes.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
}

/// Writes one safetensors file tensor by tensor, without holding more than one in memory:
/// names, dtypes (F32/F16/BF16 only) and shapes are declared first; bytes follow in that order; `finish` renames a
/// temporary file into place after fsync.
pub struct Writer {
    _private: (),
}

impl Writer {
    /// Starts `path` (a temporary sibling until `finish`).
    pub fn create(
        path: &Path,
        tensors: &[(String, DType, Vec<usize>)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, FormatError> {
        let _ = (path, tensors, metadata);
        todo!()
    }
    /// Appends bytes of the current tensor; moves to the next when it is complete. Errors on too many bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let _ = bytes;
        todo!()
    }
    /// Flush, fsync, rename. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<u64, FormatError> {
        todo!()
    }
}
