//! `model.safetensors.index.json`: which shard holds which tensor.

use super::{header::MAX_HEADER_BYTES, unique_map::UniqueMap};
use crate::{
    FormatError, Source,
    fault::{Fault, Name, malformed},
};
use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

/// Other keys (`metadata.total_size`) are informative and often wrong in real checkpoints.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: UniqueMap,
}

/// Tensor name to shard file name; every shard name is checked to be a plain file name.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, FormatError> {
    let source = Source::open(path)?;
    parse(source.bytes()).map_err(|fault| fault.at(path))
}

fn parse(json: &[u8]) -> Result<BTreeMap<String, String>, Fault> {
    if json.len() > MAX_HEADER_BYTES {
        return malformed!("index of {} bytes is over the limit of {MAX_HEADER_BYTES}", json.len());
    }
    let index: Index = serde_json::from_slice(json).map_err(|error| Fault::Malformed(error.to_string()))?;
    let weight_map = index.weight_map.0;
    if weight_map.is_empty() {
        return malformed!("`weight_map` names no tensor");
    }
    for (tensor, file) in &weight_map {
        if !is_plain_file_name(file) {
            return malformed!("tensor {}: shard name {} is not a plain file name", Name(tensor), Name(file));
        }
    }
    Ok(weight_map)
}

/// One path component on every system, so that an index cannot reach outside its folder.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(first)), None) if first == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_file_names() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        for bad in ["", ".", "..", "../x", "/x", "a/b", "a/", "./a", "a\\b", "c:x", "a\0"] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn broken_indexes() {
        let error = |json: &str| match parse(json.as_bytes()) {
            Err(Fault::Malformed(what) | Fault::Unsupported(what)) => what,
            Ok(_) => panic!("accepted {json}"),
        };
        assert!(error("{").contains("EOF"));
        assert!(error("{}").contains("weight_map"));
        assert!(error(r#"{"weight_map":{}}"#).contains("no tensor"));
        assert!(error(r#"{"weight_map":{"a":1}}"#).contains("string"));
        assert!(error(r#"{"weight_map":{"a":"x","a":"y"}}"#).contains("duplicate key `a`"));
        assert!(error(r#"{"weight_map":{"a":"../../etc/passwd"}}"#).contains("plain file name"));
    }
}
