//! The bytes of parameters, in the order in which they were declared.

use crate::{
    OnnxError,
    graph::{Content, Graph, Parameter},
    network::Network,
};
use edgelm_format::onnx::{ALIGNMENT, DataFile, Tensor, external};
use std::path::Path;

/// Larger ones lie in the file beside the model.
const INLINE_BYTES: usize = 1024;

/// Name of that file.
pub(crate) const DATA_FILE: &str = "model.onnx.data";

pub(crate) fn bytes_of(parameter: &Parameter) -> usize {
    (parameter.dims.iter().product::<usize>() * parameter.data_type.bits()).div_ceil(8)
}

fn is_inline(parameter: &Parameter) -> bool {
    matches!(parameter.content, Content::Bytes(_)) && bytes_of(parameter) <= INLINE_BYTES
}

/// The graph's initializers: small ones with their bytes, others with their place in the file.
pub(crate) fn initializers(graph: &Graph) -> Vec<Tensor> {
    let mut next = 0u64;
    let initializer = |parameter: &Parameter| {
        let (name, data_type, length) = (&parameter.name, parameter.data_type, bytes_of(parameter) as u64);
        match &parameter.content {
            Content::Bytes(bytes) if is_inline(parameter) => Tensor {
                dims: parameter.dims.iter().map(|&dim| dim as i64).collect(),
                data_type: data_type as i32,
                name: name.clone(),
                raw_data: Some(bytes.clone()),
                ..Tensor::default()
            },
            _ => {
                let offset = next;
                next = (next + length).next_multiple_of(ALIGNMENT);
                external(name, data_type, &parameter.dims, DATA_FILE, offset, length)
            }
        }
    };
    graph.parameters.iter().map(initializer).collect()
}

/// Writes the file beside the model: one matrix in memory at a time. `on_matrix` sees how many are done. Returns its size.
pub(crate) fn write(
    network: &Network<'_>,
    path: &Path,
    on_matrix: &mut dyn FnMut(usize) -> Result<(), OnnxError>,
) -> Result<u64, OnnxError> {
    let parameters = || network.graph.parameters.iter().filter(|parameter| !is_inline(parameter));
    let tensors = parameters().map(|parameter| (parameter.name.clone(), bytes_of(parameter) as u64)).collect();
    let mut file = DataFile::create(path, tensors)?;
    let mut current: Option<(usize, Vec<Vec<u8>>)> = None;
    for parameter in parameters() {
        match &parameter.content {
            Content::Bytes(bytes) => file.write(bytes)?,
            Content::Made(make) => file.write(&make())?,
            Content::Part { matrix, part } => {
                let parts = match current.take() {
                    Some((of, parts)) if of == *matrix => parts,
                    _ => {
                        on_matrix(*matrix)?;
                        let (id, form) = &network.matrices[*matrix];
                        let parts = form.bytes(network.checkpoint, *id)?;
                        network.checkpoint.release(*id);
                        parts
                    }
                };
                file.write(&parts[*part])?;
                current = Some((*matrix, parts));
            }
        }
    }
    Ok(file.finish()?)
}
