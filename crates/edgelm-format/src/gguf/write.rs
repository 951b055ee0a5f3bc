//! Writing one GGUF v3 file.

use super::{
    MAGIC, MAX_ARRAY_DEPTH, MAX_DIMENSIONS, MAX_KEY_BYTES, VERSION, alignment,
    value::{Array, Metadata, Value, id},
};
use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
    output::Output,
    payload::Payload,
    shape,
};
use edgelm_tensor::DType;
use std::{collections::HashSet, path::Path};

/// ggml refuses longer tensor names.
const MAX_TENSOR_NAME_BYTES: usize = 63;

/// Writes a GGUF v3 file tensor by tensor in declared order; same discipline as `safetensors::Writer`
/// (temporary sibling, fsync, rename; removed on drop without `finish`).
pub struct Writer(Payload);

impl Writer {
    /// `tensors`: name, format, row-major shape (reversed by the writer as GGUF wants it). Alignment is
    /// `general.alignment` if present in the metadata, else 32. What other readers would refuse is an error here:
    /// repeated or empty keys, repeated or too long tensor names, more than four dimensions, and types that GGUF does not have.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[(String, DType, Vec<usize>)],
    ) -> Result<Self, FormatError> {
        let Layout { header, sizes, alignment } = layout(metadata, tensors).map_err(|fault| fault.at(path))?;
        Ok(Self(Payload::start(Output::create(path)?, &header, sizes, alignment)?))
    }

    /// Appends bytes of the current tensor; pads and moves on when it is complete. Errors on too many bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.0.write(bytes)
    }

    /// Flush, fsync, rename; returns the file size. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<u64, FormatError> {
        self.0.finish()
    }
}

/// Bytes before the data section, and the most that alignment can add between tensors.
pub fn header_bytes(metadata: &Metadata, tensors: &[(String, DType, Vec<usize>)]) -> Result<(u64, u64), FormatError> {
    let Layout { header, alignment, .. } = layout(metadata, tensors).map_err(|fault| fault.at(Path::new("output")))?;
    Ok((header.len() as u64, alignment * tensors.len() as u64))
}

struct Layout {
    /// Everything before the data section, padded.
    header: Vec<u8>,
    sizes: Vec<(String, u64)>,
    alignment: u64,
}

fn layout(metadata: &Metadata, tensors: &[(String, DType, Vec<usize>)]) -> Result<Layout, Fault> {
    let alignment = u64::from(alignment(metadata)?);
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    let mut seen = HashSet::new();
    for (key, value) in metadata {
        if key.is_empty() || key.len() > MAX_KEY_BYTES || !seen.insert(key) {
            return malformed!("duplicate, empty or too long metadata key {}", Name(key));
        }
        put_string(&mut header, key);
        put_value(&mut header, value).map_err(|fault| fault.within(format_args!("key {}", Name(key))))?;
    }
    let mut seen = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut offset = 0_u64;
    for (name, dtype, shape) in tensors {
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(name)));
        if name.len() > MAX_TENSOR_NAME_BYTES || !seen.insert(name) {
            return malformed!("duplicate or too long (over {MAX_TENSOR_NAME_BYTES} bytes) tensor name {}", Name(name));
        }
        if shape.len() > MAX_DIMENSIONS as usize {
            return malformed!("tensor {}: more than {MAX_DIMENSIONS} dimensions", Name(name));
        }
        let size = shape::bytes(shape, dtype.name(), dtype.block_len(), 8 * dtype.block_bytes()).map_err(place)? as u64;
        put_string(&mut header, name);
        header.extend((shape.len() as u32).to_le_bytes());
        // Innermost first in the file.
        for &dimension in shape.iter().rev() {
            header.extend((dimension as u64).to_le_bytes());
        }
        let Some(id) = dtype.gguf_id() else {
            let what = format!("GGUF has no type {dtype}");
            return Err(place(Fault::Unsupported(what)));
        };
        header.extend(id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        let padded = size.checked_next_multiple_of(alignment);
        let Some(end) = padded.and_then(|padded| offset.checked_add(padded)) else {
            return malformed!("tensor {}: its end overflows", Name(name));
        };
        sizes.push((name.clone(), size));
        offset = end;
    }
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    Ok(Layout { header, sizes, alignment })
}

fn put_string(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn put_value(header: &mut Vec<u8>, value: &Value) -> Result<(), Fault> {
    let id = match value {
        Value::U8(_) => id::U8,
        Value::I8(_) => id::I8,
        Value::U16(_) => id::U16,
        Value::I16(_) => id::I16,
        Value::U32(_) => id::U32,
        Value::I32(_) => id::I32,
        Value::F32(_) => id::F32,
        Value::Bool(_) => id::BOOL,
        Value::String(_) => id::STRING,
        Value::Array(_) => id::ARRAY,
        Value::U64(_) => id::U64,
        Value::I64(_) => id::I64,
        Value::F64(_) => id::F64,
    };
    header.extend(id.to_le_bytes());
    match value {
        Value::U8(v) => header.extend(v.to_le_bytes()),
        Value::I8(v) => header.extend(v.to_le_bytes()),
        Value::U16(v) => header.extend(v.to_le_bytes()),
        Value::I16(v) => header.extend(v.to_le_bytes()),
        Value::U32(v) => header.extend(v.to_le_bytes()),
        Value::I32(v) => header.extend(v.to_le_bytes()),
        Value::F32(v) => header.extend(v.to_le_bytes()),
        Value::Bool(v) => header.push((*v).into()),
        Value::String(v) => put_string(header, v),
        Value::Array(v) => put_array(header, v, 1)?,
        Value::U64(v) => header.extend(v.to_le_bytes()),
        Value::I64(v) => header.extend(v.to_le_bytes()),
        Value::F64(v) => header.extend(v.to_le_bytes()),
    }
    Ok(())
}

/// An array at nesting depth `depth`, counted as the reader does.
fn put_array(header: &mut Vec<u8>, array: &Array, depth: usize) -> Result<(), Fault> {
    if depth > MAX_ARRAY_DEPTH {
        return malformed!("arrays nest deeper than {MAX_ARRAY_DEPTH}");
    }
    let id = match array {
        Array::U8(_) => id::U8,
        Array::I8(_) => id::I8,
        Array::U16(_) => id::U16,
        Array::I16(_) => id::I16,
        Array::U32(_) => id::U32,
        Array::I32(_) => id::I32,
        Array::F32(_) => id::F32,
        Array::Bool(_) => id::BOOL,
        Array::String(_) => id::STRING,
        Array::Array(_) => id::ARRAY,
        Array::U64(_) => id::U64,
        Array::I64(_) => id::I64,
        Array::F64(_) => id::F64,
    };
    header.extend(id.to_le_bytes());
    header.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => header.extend(v),
        Array::I8(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => header.extend(v.iter().map(|&x| u8::from(x))),
        Array::String(v) => v.iter().for_each(|text| put_string(header, text)),
        Array::Array(v) => v.iter().try_for_each(|inner| put_array(header, inner, depth + 1))?,
        Array::U64(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => header.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
    Ok(())
}
