//! Bytes of a model, and of the file beside it that holds its weights.

use super::{DataType, Entry, Model, Tensor};
use crate::{FormatError, output::Output, payload::Payload};
use prost::Message;
use std::path::Path;

/// Where tensors start in the file of weights: on pages, so that a runtime can map them.
pub const ALIGNMENT: u64 = 4096;

/// The limit of protocol buffers, which larger weights have to stay out of.
const MAX_BYTES: usize = (1 << 31) - 1;

/// A tensor whose bytes lie in file `location` from `offset` on. `name`, sizes and type are its own.
pub fn external(name: &str, data_type: DataType, dims: &[usize], location: &str, offset: u64, length: u64) -> Tensor {
    let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
    Tensor {
        dims: dims.iter().map(|&dim| dim as i64).collect(),
        data_type: data_type as i32,
        name: name.to_owned(),
        raw_data: None,
        external_data: vec![
            entry("location", location.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ],
        data_location: Some(1),
    }
}

/// The bytes of `model.onnx`. Errors where they are more than protocol buffers may have.
pub fn encode_model(model: &Model, path: &Path) -> Result<Vec<u8>, FormatError> {
    let size = model.encoded_len();
    if size > MAX_BYTES {
        let what = format!("a model of {size} bytes beside its weights is more than protocol buffers hold");
        return Err(FormatError::Unsupported { path: path.into(), what });
    }
    Ok(model.encode_to_vec())
}

/// What `encode_model` made. Errors on bytes that are no model.
pub fn decode_model(bytes: &[u8], path: &Path) -> Result<Model, FormatError> {
    Model::decode(bytes)
        .map_err(|error| FormatError::Malformed { path: path.into(), what: format!("is no ONNX model: {error}") })
}

/// The file of weights in the making: declared tensors, in declared order, each exactly as long as declared. Dropped before
/// `finish`, it leaves nothing behind.
pub struct DataFile {
    payload: Payload,
    offsets: Vec<u64>,
}

impl DataFile {
    /// For `tensors` (name and bytes each).
    pub fn create(path: &Path, tensors: Vec<(String, u64)>) -> Result<Self, FormatError> {
        let mut next = 0u64;
        let mut offsets = Vec::with_capacity(tensors.len());
        for (name, bytes) in &tensors {
            offsets.push(next);
            let end = next.checked_add(*bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            let Some(end) = end else {
                let what = format!("tensor `{name}` of {bytes} bytes does not fit into a file");
                return Err(FormatError::Unsupported { path: path.into(), what });
            };
            next = end;
        }
        let payload = Payload::start(Output::create(path)?, &[], tensors, ALIGNMENT)?;
        Ok(Self { payload, offsets })
    }

    /// Where each tensor starts.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Appends bytes of the next tensor that is not complete.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.payload.write(bytes)
    }

    /// Puts the file in place; returns its size. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<u64, FormatError> {
        self.payload.finish()
    }
}
