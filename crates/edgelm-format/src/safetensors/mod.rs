//! Safetensors files, one or many shards.
//!
//! The one thing a reader would get wrong: data need not be aligned. A file may put f32 values at an odd offset, so
//! views hand out bytes and readers convert them.

mod header;
mod index;
mod unique_map;
mod write;

pub use write::{Element, Writer};

use crate::{
    FormatError, Source, TensorInfo, TensorView,
    fault::{Fault, Name, malformed},
};
use edgelm_tensor::DType;
use std::{collections::BTreeMap, path::Path};

/// File name of an unsharded checkpoint.
const SINGLE_FILE: &str = "model.safetensors";
/// File name of the list of shards.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// One logical checkpoint over one or several mapped shards.
pub struct SafeTensors {
    shards: Vec<Source>,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

struct Stored {
    shard: usize,
    entry: header::Entry,
}

impl SafeTensors {
    /// Opens `model.safetensors` if the folder has one (as transformers does), else every shard that
    /// `model.safetensors.index.json` names. Errors where index and shards disagree about any tensor.
    pub fn open_dir(dir: &Path) -> Result<Self, FormatError> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            return Self::from_sources(vec![Source::open(&single)?]);
        }
        let index_path = dir.join(INDEX_FILE);
        if !index_path.exists() {
            let what = format!("the folder has neither `{SINGLE_FILE}` nor `{INDEX_FILE}`");
            return Err(FormatError::Malformed { path: dir.into(), what });
        }
        let weight_map = index::read(&index_path)?;
        let mut shard_names: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shard_names.sort_unstable();
        shard_names.dedup();
        let shards = shard_names.iter().map(|name| Source::open(&dir.join(name))).collect::<Result<_, _>>()?;
        let checkpoint = Self::from_sources(shards)?;
        checkpoint.check_index(&weight_map, &shard_names).map_err(|fault| fault.at(&index_path))?;
        Ok(checkpoint)
    }

    /// Reads the given shards (no index file needed). Duplicate names across shards are errors.
    pub fn from_sources(shards: Vec<Source>) -> Result<Self, FormatError> {
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        for (shard, source) in shards.iter().enumerate() {
            let header = header::parse(source.bytes()).map_err(|fault| fault.at(source.path()))?;
            for (name, entry) in header.tensors {
                if let Some(first) = tensors.get(&name) {
                    let other = shards.get(first.shard).map(|s| s.path().display().to_string()).unwrap_or_default();
                    let what = format!("tensor {} is also in `{other}`", Name(&name));
                    return Err(FormatError::Malformed { path: source.path().into(), what });
                }
                tensors.insert(name, Stored { shard, entry });
            }
            for (key, value) in header.metadata {
                metadata.entry(key).or_insert(value);
            }
        }
        Ok(Self { shards, tensors, metadata })
    }

    /// Every tensor of the index is where it says, and no shard holds another. `shard_names` are in shard order.
    fn check_index(&self, weight_map: &BTreeMap<String, String>, shard_names: &[&str]) -> Result<(), Fault> {
        for (name, file) in weight_map {
            match self.tensors.get(name) {
                None => return malformed!("tensor {} is not in {}", Name(name), Name(file)),
                Some(stored) if shard_names.get(stored.shard) != Some(&file.as_str()) => {
                    return malformed!("tensor {} is not in {} but in another shard", Name(name), Name(file));
                }
                Some(_) => {}
            }
        }
        match self.tensors.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
            Some((name, stored)) => {
                let file = shard_names.get(stored.shard).copied().unwrap_or_default();
                malformed!("tensor {} of {} is not in the index", Name(name), Name(file))
            }
            None => Ok(()),
        }
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by name. Errors (naming tensor and dtype) if it is stored in a type `DType` lacks (I64, BOOL, F8 …).
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let Some((info, source)) = self.info(name).zip(self.source_of(name)) else { return Ok(None) };
        match info {
            TensorInfo { dtype: Some(dtype), shape, bytes: Some(bytes), .. } => {
                Ok(Some(TensorView { dtype, shape, bytes: bytes.into() }))
            }
            _ => Err(FormatError::Unsupported {
                path: source.path().into(),
                what: format!("tensor {} is stored as {}", Name(name), info.type_name),
            }),
        }
    }

    /// Type name, shape and bytes of a tensor of any type, so that callers can ignore or convert buffers that are not
    /// floats.
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        let Stored { entry, .. } = self.tensors.get(name)?;
        Some(TensorInfo {
            type_name: &entry.dtype_name,
            dtype: match entry.dtype {
                safetensors::Dtype::F32 => Some(DType::F32),
                safetensors::Dtype::F16 => Some(DType::F16),
                safetensors::Dtype::BF16 => Some(DType::BF16),
                _ => None,
            },
            shape: &entry.shape,
            bytes: self.source_of(name)?.bytes().get(entry.range.clone()),
        })
    }

    /// The shard that holds a tensor (to `release` its bytes).
    pub fn source_of(&self, name: &str) -> Option<&Source> {
        self.shards.get(self.tensors.get(name)?.shard)
    }

    /// `__metadata__` of all shards merged; where they disagree, the first shard's value.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Sum of the file sizes.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes().len() as u64).sum()
    }
}
