//! A GGUF model as its readers see it: one file, or the parts of a split one.

use super::{
    part::{self, Entry, Part},
    split,
    value::{Metadata, Value},
};
use crate::{
    FormatError, Source, TensorInfo, TensorView,
    fault::{Fault, Name, malformed},
};
use std::{collections::HashMap, path::Path};

/// A mapped GGUF file (or the parts of a split one).
pub struct GgufFile {
    first: Source,
    rest: Vec<Source>,
    metadata: Metadata,
    metadata_index: HashMap<String, usize>,
    tensors: Vec<Stored>,
    tensor_index: HashMap<String, usize>,
}

struct Stored {
    /// 0 for `first`, 1 for the first of `rest`.
    part: usize,
    entry: Entry,
}

impl GgufFile {
    /// Maps and checks a file. A split file (`split.count` > 1; `…-00001-of-0000N.gguf`) opens all its parts, whichever
    /// of them is named.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let source = Source::open(path)?;
        let part = parse(&source)?;
        match split_count(&part.metadata).map_err(|fault| fault.at(path))? {
            1 => Self::from_first(source, part),
            count => Self::open_parts(path, count),
        }
    }

    /// From bytes already at hand; a part of a split model is an error.
    pub fn from_source(source: Source) -> Result<Self, FormatError> {
        let part = parse(&source)?;
        match split_count(&part.metadata).map_err(|fault| fault.at(source.path()))? {
            1 => Self::from_first(source, part),
            count => Err(FormatError::Unsupported {
                path: source.path().into(),
                what: format!("is one of {count} parts, which can only be opened as files"),
            }),
        }
    }

    fn open_parts(path: &Path, count: u64) -> Result<Self, FormatError> {
        let mut model: Option<Self> = None;
        for (number, path) in (0..).zip(split::part_paths(path, count).map_err(|fault| fault.at(path))?) {
            let source = Source::open(&path)?;
            let part = parse(&source)?;
            check_part(&part.metadata, number, count).map_err(|fault| fault.at(&path))?;
            match &mut model {
                None => model = Some(Self::from_first(source, part)?),
                Some(model) => model.add_part(source, part)?,
            }
        }
        let model = model.ok_or(Fault::Malformed("has no parts".into())).map_err(|fault| fault.at(path))?;
        model.check_tensor_count().map_err(|fault| fault.at(model.path()))?;
        Ok(model)
    }

    /// The first or only part; its metadata is the model's.
    fn from_first(first: Source, part: Part) -> Result<Self, FormatError> {
        let Part { metadata, tensors } = part;
        let metadata_index = metadata.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect();
        let mut model = Self {
            first,
            rest: Vec::new(),
            metadata,
            metadata_index,
            tensors: Vec::with_capacity(tensors.len()),
            tensor_index: HashMap::with_capacity(tensors.len()),
        };
        model.add_tensors(0, tensors).map_err(|fault| fault.at(model.path()))?;
        Ok(model)
    }

    /// A further part. What its metadata says besides `split.*` must agree with the first part.
    fn add_part(&mut self, source: Source, part: Part) -> Result<(), FormatError> {
        let differs = |(key, value): &&(String, Value)| {
            !key.starts_with(split::KEY_PREFIX) && self.get_meta(key).is_none_or(|first| first != value)
        };
        if let Some((key, _)) = part.metadata.iter().find(differs) {
            let what = format!("key {} is not, or not the same, in `{}`", Name(key), self.path().display());
            return Err(FormatError::Malformed { path: source.path().into(), what });
        }
        self.add_tensors(self.rest.len() + 1, part.tensors).map_err(|fault| fault.at(source.path()))?;
        self.rest.push(source);
        Ok(())
    }

    fn add_tensors(&mut self, part: usize, tensors: Vec<Entry>) -> Result<(), Fault> {
        for entry in tensors {
            if self.tensor_index.insert(entry.name.clone(), self.tensors.len()).is_some() {
                return malformed!("tensor {} is also in an earlier part", Name(&entry.name));
            }
            self.tensors.push(Stored { part, entry });
        }
        Ok(())
    }

    fn check_tensor_count(&self) -> Result<(), Fault> {
        let Some(declared) = self.get_meta(split::TENSOR_COUNT_KEY) else { return Ok(()) };
        if declared.as_u64() != Some(self.tensors.len() as u64) {
            return malformed!(
                "key `{}` is {}, but the {} parts hold {} tensors",
                split::TENSOR_COUNT_KEY,
                declared.summary(),
                self.rest.len() + 1,
                self.tensors.len()
            );
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(*self.tensor_index.get(name)?)
    }

    fn part(&self, number: usize) -> Option<&Source> {
        match number.checked_sub(1) {
            None => Some(&self.first),
            Some(index) => self.rest.get(index),
        }
    }

    /// Metadata in file order.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A metadata value by key.
    pub fn get_meta(&self, key: &str) -> Option<&Value> {
        self.metadata.get(*self.metadata_index.get(key)?).map(|(_, value)| value)
    }

    /// Tensor names in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|stored| stored.entry.name.as_str())
    }

    /// A tensor by name. Errors (naming tensor and type id) where `DType` lacks its type.
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let Some((stored, info)) = self.stored(name).zip(self.info(name)) else { return Ok(None) };
        match info {
            TensorInfo { dtype: Some(dtype), shape, bytes: Some(bytes), .. } => {
                Ok(Some(TensorView { dtype, shape, bytes: bytes.into() }))
            }
            _ => Err(FormatError::Unsupported {
                path: self.part(stored.part).unwrap_or(&self.first).path().into(),
                what: format!(
                    "tensor {} is stored as {} (GGUF type id {})",
                    Name(name),
                    info.type_name,
                    stored.entry.stored.id
                ),
            }),
        }
    }

    /// Type name, shape and, where the type's size is known, bytes of a tensor of any type (to list it).
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        let Stored { part, entry } = self.stored(name)?;
        let bytes = self.part(*part)?.bytes();
        Some(TensorInfo {
            type_name: &entry.stored.name,
            dtype: entry.stored.dtype,
            shape: &entry.shape,
            bytes: entry.range.clone().and_then(|range| bytes.get(range)),
        })
    }

    /// The part that holds a tensor (to `release` its bytes).
    pub fn source_of(&self, name: &str) -> Option<&Source> {
        self.part(self.stored(name)?.part)
    }

    /// Sum of the file sizes.
    pub fn file_bytes(&self) -> u64 {
        std::iter::once(&self.first).chain(&self.rest).map(|part| part.bytes().len() as u64).sum()
    }

    /// The file's path (of a split model, the first part's), for messages.
    pub fn path(&self) -> &Path {
        self.first.path()
    }
}

fn parse(source: &Source) -> Result<Part, FormatError> {
    part::parse(source.bytes()).map_err(|fault| fault.at(source.path()))
}

/// How many files make up the model; 1 if it is not split.
fn split_count(metadata: &Metadata) -> Result<u64, Fault> {
    Ok(split_number(metadata, split::COUNT_KEY)?.unwrap_or(1).max(1))
}

fn split_number(metadata: &Metadata, key: &str) -> Result<Option<u64>, Fault> {
    let Some((_, value)) = metadata.iter().find(|entry| entry.0 == key) else { return Ok(None) };
    match value.as_u64() {
        Some(number) => Ok(Some(number)),
        None => malformed!("key {}: {} is not a count", Name(key), value.summary()),
    }
}

/// The file named as part `number` (from 0) of `count` says so itself.
fn check_part(metadata: &Metadata, number: u64, count: u64) -> Result<(), Fault> {
    for (key, expected) in [(split::NUMBER_KEY, number), (split::COUNT_KEY, count)] {
        let found = split_number(metadata, key)?;
        if found != Some(expected) {
            let found = found.map_or("missing".to_owned(), |found| found.to_string());
            return malformed!("key `{key}` is {found}, expected {expected} from the other parts and the file name");
        }
    }
    Ok(())
}
