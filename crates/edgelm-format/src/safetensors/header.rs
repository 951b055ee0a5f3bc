//! The header of one safetensors file: `u64` length, JSON directory, data.
//!
//! Stricter than the reference reader (crate `safetensors`), which keeps the last of two equal names: here a repeated
//! name, an unknown field or a header that does not start with `{` is an error, and errors name the tensor.
//! Everything accepted here is accepted there with equal views (tested).
//! Source: the format description in the safetensors repository, README.

use super::unique_map::UniqueMap;
use crate::{
    fault::{Fault, Name, malformed},
    shape,
};
use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::{collections::BTreeMap, fmt, ops::Range};

/// The reference reader's limit.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes of the length field.
pub(super) const LENGTH_BYTES: usize = 8;
/// Key of the free-form strings; no tensor can have this name.
pub(super) const METADATA_KEY: &str = "__metadata__";
/// Bounds what a header of `[0,0,0,…` can make us hold. PyTorch stops at 64.
pub(super) const MAX_DIMENSIONS: usize = 64;

pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) dtype_name: String,
    pub(super) shape: Vec<usize>,
    /// Position of the data in the file.
    pub(super) range: Range<usize>,
}

/// Parses and checks the header against the file's length.
pub(super) fn parse(file: &[u8]) -> Result<Header, Fault> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return malformed!("{} bytes are too few for a safetensors header", file.len());
    };
    let length = u64::from_le_bytes(*length);
    let Some(length) = usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER_BYTES) else {
        return malformed!("header of {length} bytes is over the limit of {MAX_HEADER_BYTES}; not a safetensors file?");
    };
    let Some((json, data)) = rest.split_at_checked(length) else {
        return malformed!("file ends inside the header: {length} bytes declared, {} present", rest.len());
    };
    if json.first() != Some(&b'{') {
        return malformed!("the header does not start with `{{`");
    }
    let directory: Directory =
        serde_json::from_slice(json).map_err(|error| Fault::Malformed(format!("header: {error}")))?;
    check_layout(&directory.tensors, data.len())?;
    let data_start = file.len() - data.len();
    let mut tensors = BTreeMap::new();
    for (name, declared) in directory.tensors {
        let entry =
            check_tensor(declared, data_start).map_err(|fault| fault.within(format_args!("tensor {}", Name(&name))))?;
        tensors.insert(name, entry);
    }
    Ok(Header { metadata: directory.metadata, tensors })
}

/// The tensors must cover the data section without gap or overlap, in whatever order they are listed.
fn check_layout(tensors: &BTreeMap<String, Declared>, data_bytes: usize) -> Result<(), Fault> {
    let mut spans: Vec<(usize, usize, &str)> =
        tensors.iter().map(|(name, t)| (t.data_offsets.0, t.data_offsets.1, name.as_str())).collect();
    spans.sort_unstable();
    let mut covered = 0;
    let mut previous = "";
    for (begin, end, name) in spans {
        let name = Name(name);
        if end < begin {
            return malformed!("tensor {name}: data offsets [{begin}, {end}] run backwards");
        } else if end > data_bytes {
            return malformed!(
                "tensor {name}: data ends at offset {end} but the file holds {data_bytes} bytes of data; truncated?"
            );
        } else if begin < covered {
            return malformed!("tensor {name}: data offset {begin} overlaps tensor {}", Name(previous));
        } else if begin > covered {
            return malformed!("tensor {name}: bytes {covered}..{begin} before it belong to no tensor");
        }
        covered = end;
        previous = name.0;
    }
    if covered < data_bytes {
        return malformed!("the last {} bytes of the file belong to no tensor", data_bytes - covered);
    }
    Ok(())
}

/// Type and shape must account for exactly the declared bytes.
fn check_tensor(declared: Declared, data_start: usize) -> Result<Entry, Fault> {
    let Declared { dtype: dtype_name, shape, data_offsets: (begin, end) } = declared;
    let Ok(dtype) =
        Dtype::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(dtype_name.as_str()))
    else {
        return Err(Fault::Unsupported(format!("unknown dtype {}", Name(&dtype_name))));
    };
    let size = shape::bytes(&shape, &dtype_name, 1, dtype.bitsize())?;
    if size != end - begin {
        return malformed!("shape {shape:?} in {dtype} is {size} bytes, data offsets hold {}", end - begin);
    }
    // `check_layout` bounded both offsets by the file's length.
    Ok(Entry { dtype, dtype_name, shape, range: data_start + begin..data_start + end })
}

/// One directory entry as written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    dtype: String,
    #[serde(deserialize_with = "dimensions")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Dimensions;
    impl<'de> Visitor<'de> for Dimensions {
        type Value = Vec<usize>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of dimensions")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(dimension) = seq.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format_args!("more than {MAX_DIMENSIONS} dimensions")));
                }
                shape.push(dimension);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Dimensions)
}

/// The JSON object, with repeated names refused.
struct Directory {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Declared>,
}

impl<'de> Deserialize<'de> for Directory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Directory;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Directory, A::Error> {
                let mut metadata: Option<BTreeMap<String, String>> = None;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if tensors.contains_key(&name) || (name == METADATA_KEY && metadata.is_some()) {
                        return Err(A::Error::custom(format_args!("duplicate name {}", Name(&name))));
                    }
                    let place = |error: A::Error| A::Error::custom(format_args!("{}: {error}", Name(&name)));
                    if name == METADATA_KEY {
                        let entries = map.next_value::<Option<UniqueMap>>().map_err(place)?;
                        metadata = Some(entries.map(|entries| entries.0).unwrap_or_default());
                    } else {
                        let declared = map.next_value::<Declared>().map_err(place)?;
                        tensors.insert(name, declared);
                    }
                }
                Ok(Directory { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
