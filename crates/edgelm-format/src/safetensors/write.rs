//! Writing one safetensors file.

use super::header::{LENGTH_BYTES, MAX_DIMENSIONS, MAX_HEADER_BYTES, METADATA_KEY};
use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
    output::Output,
    payload::Payload,
    shape,
};
use edgelm_tensor::DType;
use serde::ser::{SerializeMap, Serializer};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

/// Writes one safetensors file tensor by tensor, without holding more than one in memory:
/// names, types and shapes are declared first; bytes follow in that order; `finish` renames a
/// temporary file into place after fsync.
pub struct Writer(Payload);

/// What a tensor that is written holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    F16,
    BF16,
    I8,
    U8,
    I32,
    I64,
}

impl Element {
    /// That of a format without blocks.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Of a value.
    pub fn bytes(self) -> usize {
        self.stored().1
    }

    /// The format's spelling, and bytes of a value.
    fn stored(self) -> (&'static str, usize) {
        match self {
            Self::F32 => ("F32", 4),
            Self::F16 => ("F16", 2),
            Self::BF16 => ("BF16", 2),
            Self::I8 => ("I8", 1),
            Self::U8 => ("U8", 1),
            Self::I32 => ("I32", 4),
            Self::I64 => ("I64", 8),
        }
    }
}

impl Writer {
    /// Starts `path` (a temporary sibling until `finish`), for tensors of floats.
    pub fn create(
        path: &Path,
        tensors: &[(String, DType, Vec<usize>)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, FormatError> {
        let element = |(name, dtype, shape): &(String, DType, Vec<usize>)| match Element::of(*dtype) {
            Some(element) => Ok((name.clone(), element, shape.clone())),
            None => {
                let fault = Fault::Unsupported(format!("safetensors cannot hold {dtype}"));
                Err(fault.within(format_args!("tensor {}", Name(name))).at(path))
            }
        };
        Self::create_typed(path, &tensors.iter().map(element).collect::<Result<Vec<_>, _>>()?, metadata)
    }

    /// The same for tensors of any type.
    pub fn create_typed(
        path: &Path,
        tensors: &[(String, Element, Vec<usize>)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, FormatError> {
        let (header, sizes) = layout(tensors, metadata).map_err(|fault| fault.at(path))?;
        // Safetensors data is contiguous.
        const NO_PADDING: u64 = 1;
        Ok(Self(Payload::start(Output::create(path)?, &header, sizes, NO_PADDING)?))
    }

    /// What a file of these tensors holds before the first of them.
    pub fn header_bytes(
        tensors: &[(String, Element, Vec<usize>)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<u64, FormatError> {
        let (header, _) = layout(tensors, metadata).map_err(|fault| fault.at(Path::new("")))?;
        Ok(header.len() as u64)
    }

    /// Appends bytes of the current tensor; moves to the next when it is complete. Errors on too many bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.0.write(bytes)
    }

    /// Flush, fsync, rename; returns the file size. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<u64, FormatError> {
        self.0.finish()
    }
}

#[derive(serde::Serialize)]
struct Declared<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

type Sizes = Vec<(String, u64)>;

/// Length field and JSON padded to 8 bytes, and the size of each tensor.
fn layout(
    tensors: &[(String, Element, Vec<usize>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Sizes), Fault> {
    let mut seen = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut directory = Vec::with_capacity(tensors.len());
    let mut offset = 0_u64;
    for (name, element, shape) in tensors {
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(name)));
        if name == METADATA_KEY || !seen.insert(name) {
            return malformed!("duplicate or reserved tensor name {}", Name(name));
        }
        if shape.len() > MAX_DIMENSIONS {
            return malformed!("tensor {}: more than {MAX_DIMENSIONS} dimensions", Name(name));
        }
        let (dtype, bytes) = element.stored();
        let size = shape::bytes(shape, dtype, 1, 8 * bytes).map_err(place)? as u64;
        let Some(end) = offset.checked_add(size) else {
            return malformed!("tensor {}: its end overflows", Name(name));
        };
        directory.push((name, Declared { dtype, shape, data_offsets: [offset, end] }));
        sizes.push((name.clone(), size));
        offset = end;
    }
    let mut header = vec![0; LENGTH_BYTES];
    let write_json = |header: &mut Vec<u8>| -> Result<(), serde_json::Error> {
        let mut json = serde_json::Serializer::new(header);
        let mut map = json.serialize_map(None)?;
        if !metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, metadata)?;
        }
        for (name, declared) in &directory {
            map.serialize_entry(name, declared)?;
        }
        map.end()
    };
    write_json(&mut header).map_err(|error| Fault::Malformed(format!("header: {error}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let json_bytes = header.len() - LENGTH_BYTES;
    if json_bytes > MAX_HEADER_BYTES {
        return malformed!("header of {json_bytes} bytes is over the limit of {MAX_HEADER_BYTES}");
    }
    header[..LENGTH_BYTES].copy_from_slice(&(json_bytes as u64).to_le_bytes());
    Ok((header, sizes))
}
