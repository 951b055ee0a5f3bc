//! What every target of quantized matrices shares.

use edgelm_format::{CodedMatrix, Source, safetensors::SafeTensors};
use serde_json::Value;

/// A line of JSON (`quantization_config`), then a file.
#[allow(dead_code)]
pub fn config_and_file(bytes: &[u8]) -> Option<(Value, SafeTensors)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let config = serde_json::from_slice(&bytes[..end]).ok()?;
    let file = SafeTensors::from_sources(vec![Source::owned("fuzz", bytes[end + 1..].to_vec())]).ok()?;
    Some((config, file))
}

/// Names of tensors up to the last dot, or to an underscore.
#[allow(dead_code)]
pub fn modules(file: &SafeTensors, separator: char) -> Vec<String> {
    file.names().filter_map(|name| Some(name.rsplit_once(separator)?.0.to_owned())).collect()
}

/// Reads the first rows of a matrix in every way there is.
pub fn check(found: &dyn CodedMatrix) {
    let [n, k] = found.shape();
    assert_eq!(found.full_shape().iter().product::<usize>(), n * k);
    let rows = n.min(3);
    let row_bytes = found.dtype().row_bytes(k).expect("rows are whole blocks");
    assert_eq!(found.blocks(0..rows).len(), rows * row_bytes);
    found.values(0..rows, &mut vec![0.0; rows * k]);
    if let Some(reordered) = found.reordered() {
        assert_eq!(reordered.order.len(), k);
        assert_eq!(reordered.bytes.len(), n * reordered.dtype.row_bytes(k).expect("rows are whole blocks"));
    }
}
