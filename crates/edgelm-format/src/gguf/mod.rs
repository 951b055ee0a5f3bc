//! GGUF v2 and v3: metadata, tensor directory, data. Reading is mapped and lazy; writing streams.
use crate::{FormatError, Source, TensorView};
use edgelm_tensor::DType;
use std::{collections::BTreeMap, path::Path};

/// A metadata value. Arrays keep their element type, also when empty.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// A homogeneous metadata array.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    /// Arrays of arrays (read, kept, seldom used).
    Array(Vec<Array>),
}

impl Value {
    /// Any unsigned or non-negative signed integer as u64.
    pub fn as_u64(&self) -> Option<u64> {
        todo!()
    }
    /// F32 or F64 (not integers).
    pub fn as_f64(&self) -> Option<f64> {
        todo!()
    }
    /// String.
    pub fn as_str(&self) -> Option<&str> {
        todo!()
    }
    /// Bool.
    pub fn as_bool(&self) -> Option<bool> {
        todo!()
    }
    /// Array of strings.
    pub fn as_strings(&self) -> Option<&[String]> {
        todo!()
    }
    /// Array of any integer type, each widened (None if one is negative).
    pub fn as_u64s(&self) -> Option<Vec<u64>> {
        todo!()
    }
}

/// Ordered as in the file (writers keep the order they are given).
pub type Metadata = Vec<(String, Value)>;

/// A mapped GGUF file (or the parts of a split one).
pub struct GgufFile {
    _private: (),
}

impl GgufFile {
    /// Maps and checks a file. A split file (`split.count` > 1; `…-00001-of-0000N.gguf`) opens all its parts.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let _ = path;
        todo!()
    }
    /// From bytes already at hand.
    pub fn from_source(source: Source) -> Result<Self, FormatError> {
        let _ = source;
        todo!()
    }
    /// Metadata in file order.
    pub fn metadata(&self) -> &Metadata {
        todo!()
    }
    /// A metadata value by key.
    pub fn get_meta(&self, key: &str) -> Option<&Value> {
        let _ = key;
        todo!()
    }
    /// Tensor names in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
    /// A tensor by name. Errors (naming tensor and type id) where `DType` lacks its type.
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, FormatError> {
        let _ = name;
        todo!()
    }
    /// The part that holds a tensor (to `release` its bytes).
    pub fn source_of(&self, name: &str) -> Option<&Source> {
        let _ = name;
        todo!()
    }
    /// Sum of the file sizes.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        todo!()
    }
}

/// Writes a GGUF v3 file tensor by tensor in declared order; same discipline as `safetensors::Writer`
/// (temporary sibling, fsync, rename; removed on drop without `finish`).
pub struct Writer {
    _private: (),
}

impl Writer {
    /// `tensors`: name, format, row-major shape (reversed by the writer as GGUF wants it). Alignment is
    /// `general.alignment` if present in the metadata, else 32.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[(String, DType, Vec<usize>)],
    ) -> Result<Self, FormatError> {
        let _ = (path, metadata, tensors);
        todo!()
    }
    /// Appends bytes of the current tensor; pads and moves on when it is complete. Errors on too many bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let _ = bytes;
        todo!()
    }
    /// Flush, fsync, rename; returns the file size. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<u64, FormatError> {
        todo!()
    }
}
#[allow(unused)]
type _Unused = BTreeMap<(), ()>;
