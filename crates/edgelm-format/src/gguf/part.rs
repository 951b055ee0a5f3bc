//! Parsing one GGUF file: header, metadata, tensor directory, and where each tensor's bytes are.

use super::{
    MAGIC, MAX_ARRAY_DEPTH, MAX_DIMENSIONS, MAX_KEY_BYTES, VERSION, alignment,
    cursor::Cursor,
    stored_type::StoredType,
    value::{Array, Metadata, Value, id},
};
use crate::{
    fault::{Fault, Name, malformed},
    shape,
};
use std::{collections::HashSet, ops::Range};

/// Length, one byte of name, type, one byte of value.
const MIN_KEY_VALUE_BYTES: usize = 8 + 1 + 4 + 1;
/// Name length, dimension count, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;
/// Length field.
const MIN_STRING_BYTES: usize = 8;
/// Element type and length fields.
const MIN_ARRAY_BYTES: usize = 4 + 8;
/// Vectors of larger things grow as elements prove to be there, instead of trusting a count.
const MAX_RESERVED: usize = 1 << 10;

/// One parsed file.
pub(super) struct Part {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Entry>,
}

/// One tensor of the directory.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) stored: StoredType,
    /// Row-major.
    pub(super) shape: Vec<usize>,
    /// Position in the file; `None` where the type's size is not known.
    pub(super) range: Option<Range<usize>>,
}

/// Parses and checks everything but the tensors' values.
pub(super) fn parse(bytes: &[u8]) -> Result<Part, Fault> {
    let mut cursor = Cursor::new(bytes);
    check_version(&mut cursor)?;
    // Both counts come before either list: each is checked against all that is left.
    let tensor_count = cursor.count(MIN_TENSOR_BYTES, "the tensor count")?;
    let key_count = cursor.count(MIN_KEY_VALUE_BYTES, "the metadata count")?;
    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;
    let mut declared = Vec::with_capacity(tensor_count.min(MAX_RESERVED));
    let mut seen = HashSet::new();
    for index in 0..tensor_count {
        let name = cursor.string("a tensor name").map_err(|fault| fault.within(format_args!("tensor {index}")))?;
        if !seen.insert(name) {
            return malformed!("duplicate tensor name {}", Name(name));
        }
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(name)));
        declared.push((name, read_declared(&mut cursor).map_err(place)?));
    }
    let data_start = cursor.position().checked_next_multiple_of(alignment as usize).unwrap_or(usize::MAX);
    let mut tensors = Vec::with_capacity(declared.len());
    // (start, end, index); the end is the start where the size is not known.
    let mut spans = Vec::with_capacity(declared.len());
    for (name, declared) in declared {
        let place = |fault: Fault| fault.within(format_args!("tensor {}", Name(name)));
        let (start, range) = locate(&declared, data_start, alignment, bytes.len()).map_err(place)?;
        spans.push((start, range.as_ref().map_or(start, |range| range.end), tensors.len()));
        let Declared { stored, shape, .. } = declared;
        tensors.push(Entry { name: name.to_owned(), stored, shape, range });
    }
    check_overlap(spans, &tensors)?;
    Ok(Part { metadata, tensors })
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    if cursor.array::<4>("the magic number")? != MAGIC {
        return malformed!("not a GGUF file: it does not start with `GGUF`");
    }
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    match cursor.u32("the version")? {
        2 | VERSION => Ok(()),
        1 => unsupported("GGUF version 1 is not supported, only 2 and 3: convert the file anew".into()),
        // Small numbers read in the other byte order have an empty low half.
        version if version & 0xffff == 0 && version != 0 => {
            unsupported(format!("big-endian GGUF (version {}) is not supported", version.swap_bytes()))
        }
        version => unsupported(format!("GGUF version {version} is not supported, only 2 and 3")),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata, Fault> {
    let mut metadata = Metadata::with_capacity(count.min(MAX_RESERVED));
    let mut seen = HashSet::new();
    for index in 0..count {
        let key =
            cursor.string("a metadata key").map_err(|fault| fault.within(format_args!("metadata entry {index}")))?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return malformed!("metadata entry {index}: a key of {} bytes, expected 1 to {MAX_KEY_BYTES}", key.len());
        }
        if !seen.insert(key) {
            return malformed!("duplicate metadata key {}", Name(key));
        }
        let value = read_value(cursor).map_err(|fault| fault.within(format_args!("key {}", Name(key))))?;
        metadata.push((key.to_owned(), value));
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Value, Fault> {
    const WHAT: &str = "a value";
    Ok(match cursor.u32("a value type")? {
        id::U8 => Value::U8(u8::from_le_bytes(cursor.array(WHAT)?)),
        id::I8 => Value::I8(i8::from_le_bytes(cursor.array(WHAT)?)),
        id::U16 => Value::U16(u16::from_le_bytes(cursor.array(WHAT)?)),
        id::I16 => Value::I16(i16::from_le_bytes(cursor.array(WHAT)?)),
        id::U32 => Value::U32(cursor.u32(WHAT)?),
        id::I32 => Value::I32(i32::from_le_bytes(cursor.array(WHAT)?)),
        id::F32 => Value::F32(f32::from_le_bytes(cursor.array(WHAT)?)),
        id::BOOL => Value::Bool(bool_of(u8::from_le_bytes(cursor.array(WHAT)?))?),
        id::STRING => Value::String(cursor.string("a string")?.to_owned()),
        id::ARRAY => Value::Array(read_array(cursor, 1)?),
        id::U64 => Value::U64(cursor.u64(WHAT)?),
        id::I64 => Value::I64(i64::from_le_bytes(cursor.array(WHAT)?)),
        id::F64 => Value::F64(f64::from_le_bytes(cursor.array(WHAT)?)),
        other => return malformed!("unknown value type {other}"),
    })
}

/// An array at nesting depth `depth` (1 for one that holds scalars or stands alone).
fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Array, Fault> {
    if depth > MAX_ARRAY_DEPTH {
        return malformed!("arrays nest deeper than {MAX_ARRAY_DEPTH}");
    }
    Ok(match cursor.u32("an array element type")? {
        id::U8 => Array::U8(numbers(cursor, u8::from_le_bytes)?),
        id::I8 => Array::I8(numbers(cursor, i8::from_le_bytes)?),
        id::U16 => Array::U16(numbers(cursor, u16::from_le_bytes)?),
        id::I16 => Array::I16(numbers(cursor, i16::from_le_bytes)?),
        id::U32 => Array::U32(numbers(cursor, u32::from_le_bytes)?),
        id::I32 => Array::I32(numbers(cursor, i32::from_le_bytes)?),
        id::F32 => Array::F32(numbers(cursor, f32::from_le_bytes)?),
        id::U64 => Array::U64(numbers(cursor, u64::from_le_bytes)?),
        id::I64 => Array::I64(numbers(cursor, i64::from_le_bytes)?),
        id::F64 => Array::F64(numbers(cursor, f64::from_le_bytes)?),
        id::BOOL => {
            let count = cursor.count(1, "an array length")?;
            Array::Bool(cursor.take(count, "an array")?.iter().map(|&byte| bool_of(byte)).collect::<Result<_, _>>()?)
        }
        id::STRING => {
            let count = cursor.count(MIN_STRING_BYTES, "an array length")?;
            let mut strings = Vec::with_capacity(count.min(MAX_RESERVED));
            for index in 0..count {
                let text = cursor.string("a string").map_err(|fault| fault.within(format_args!("element {index}")))?;
                strings.push(text.to_owned());
            }
            Array::String(strings)
        }
        id::ARRAY => {
            let count = cursor.count(MIN_ARRAY_BYTES, "an array length")?;
            let mut arrays = Vec::with_capacity(count.min(MAX_RESERVED));
            for index in 0..count {
                let inner =
                    read_array(cursor, depth + 1).map_err(|fault| fault.within(format_args!("element {index}")))?;
                arrays.push(inner);
            }
            Array::Array(arrays)
        }
        other => return malformed!("unknown array element type {other}"),
    })
}

fn numbers<T, const N: usize>(cursor: &mut Cursor<'_>, from: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
    let count = cursor.count(N, "an array length")?;
    // Cannot overflow: `count` divided the bytes left by N.
    let (chunks, _) = cursor.take(count * N, "an array")?.as_chunks::<N>();
    Ok(chunks.iter().map(|&chunk| from(chunk)).collect())
}

fn bool_of(byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => malformed!("{other} is not a bool"),
    }
}

/// A directory entry as written.
struct Declared {
    stored: StoredType,
    /// Row-major.
    shape: Vec<usize>,
    /// From the start of the data section.
    offset: u64,
}

fn read_declared(cursor: &mut Cursor<'_>) -> Result<Declared, Fault> {
    let dimensions = cursor.u32("a dimension count")?;
    if dimensions > MAX_DIMENSIONS {
        return malformed!("{dimensions} dimensions, at most {MAX_DIMENSIONS} are allowed");
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let dimension = cursor.u64("a dimension")?;
        let Ok(dimension) = usize::try_from(dimension) else {
            return malformed!("dimension {dimension} overflows");
        };
        shape.push(dimension);
    }
    // Innermost first in the file.
    shape.reverse();
    let stored = StoredType::from_id(cursor.u32("a tensor type")?);
    let offset = cursor.u64("a tensor offset")?;
    Ok(Declared { stored, shape, offset })
}

/// Start in the file and, where the type's size is known, the range.
fn locate(
    declared: &Declared,
    data_start: usize,
    alignment: u32,
    file_bytes: usize,
) -> Result<(usize, Option<Range<usize>>), Fault> {
    let Declared { stored, shape, offset } = declared;
    if !offset.is_multiple_of(u64::from(alignment)) {
        return malformed!("offset {offset} is not a multiple of the alignment {alignment}");
    }
    let start = usize::try_from(*offset).ok().and_then(|offset| data_start.checked_add(offset));
    let Some(start) = start.filter(|&start| start <= file_bytes) else {
        return malformed!("offset {offset} is past the end of the file ({file_bytes} bytes); truncated?");
    };
    let Some((block_len, block_bytes)) = stored.block else {
        shape::check(shape)?;
        return Ok((start, None));
    };
    let size = shape::bytes(shape, &stored.name, block_len, 8 * block_bytes)?;
    match start.checked_add(size).filter(|&end| end <= file_bytes) {
        Some(end) => Ok((start, Some(start..end))),
        None => malformed!("its {size} bytes from byte {start} end after the file ({file_bytes} bytes); truncated?"),
    }
}

/// No two tensors share bytes.
fn check_overlap(mut spans: Vec<(usize, usize, usize)>, tensors: &[Entry]) -> Result<(), Fault> {
    spans.sort_unstable();
    let name = |index: usize| Name(tensors.get(index).map_or("", |tensor| tensor.name.as_str()));
    for pair in spans.windows(2) {
        if let [(_, end, first), (start, _, second)] = *pair
            && start < end
        {
            return malformed!("tensor {}: its data overlaps tensor {}", name(second), name(first));
        }
    }
    Ok(())
}
