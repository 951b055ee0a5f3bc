//! Into a Hugging Face folder.

use super::{FolderScheme, Out, Plan, Written};
use crate::{
    CompressError, MatrixFormat,
    layer_pass::{decode, decode_blocks},
    staged::Staged,
    tensor_pass::{Distortion, encode_rows},
};
use edgelm_format::safetensors::{Element, Writer};
use edgelm_model::{Checkpoint, Edited, TensorId, Tensors};
use std::{collections::BTreeMap, path::Path};

pub(super) struct FolderOut {
    folder: Staged,
    weights: Writer,
    scheme: FolderScheme,
}

impl FolderOut {
    pub fn create(
        checkpoint: &Checkpoint,
        output: &Path,
        plans: &[Plan],
        scheme: FolderScheme,
    ) -> Result<Self, CompressError> {
        let mut declared = Vec::new();
        let (mut tables, mut ignore): (Vec<&Plan>, _) = (Vec::new(), Vec::new());
        for plan in plans {
            let shape = checkpoint.describe(plan.id)?.1.to_vec();
            let matrix = [shape.first().copied().unwrap_or(0), shape.last().copied().unwrap_or(0)];
            match plan.format {
                format @ MatrixFormat::Block(_) if scheme.is_sparse(plan.id, format, matrix[1]) => {
                    declared.extend(scheme.declare(plan.id, module(&plan.name), matrix));
                }
                MatrixFormat::Block(dtype) => {
                    let element = Element::of(dtype).ok_or(CompressError::FolderFormat { dtype })?;
                    declared.push((plan.name.clone(), element, shape));
                    if plan.id.is_matrix() {
                        ignore.push(module(&plan.name).to_owned());
                    }
                }
                MatrixFormat::Int(_) | MatrixFormat::Lookup(_) => {
                    declared.extend(scheme.declare(plan.id, module(&plan.name), matrix));
                    if !matches!(plan.id, TensorId::Layer(..)) {
                        tables.push(plan);
                    }
                }
            }
        }
        // Where it is tied there is no such tensor, but still a module.
        if checkpoint.config().tie_word_embeddings {
            ignore.push(module(&checkpoint.config().arch.hf_tensor_name(TensorId::Output)).to_owned());
        }
        let tables = tables
            .first()
            .map(|first| (first.id, tables.iter().map(|plan| module(&plan.name).to_owned()).collect::<Vec<_>>()));
        let quantization = scheme.config(tables, ignore);
        let layers: Vec<usize> = (0..checkpoint.config().layers.len()).collect();
        let files = checkpoint.hf_files_with(checkpoint.config(), &layers, Some(quantization))?;
        let folder = Staged::create(output)?;
        for (name, content) in files {
            folder.write(&name, &content)?;
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = Writer::create_typed(&folder.path().join("model.safetensors"), &declared, &metadata)?;
        Ok(Self { folder, weights, scheme })
    }
}

impl FolderOut {
    /// Returns their bytes.
    fn write_parts(&mut self, parts: &[Vec<u8>]) -> Result<u64, CompressError> {
        parts.iter().try_for_each(|part| self.weights.write(part))?;
        Ok(parts.iter().map(|part| part.len() as u64).sum())
    }
}

/// The module of a weight.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl Out for FolderOut {
    fn write(
        &mut self,
        edited: &Edited<'_>,
        plan: &Plan,
        is_done: bool,
        importance: Option<&[f32]>,
        go_on: &mut dyn FnMut() -> Result<(), CompressError>,
    ) -> Result<Written, CompressError> {
        go_on()?;
        let (checkpoint, view) = (edited.base(), edited.tensor(plan.id)?);
        let named = |source| CompressError::Tensor { name: checkpoint.stored_name(plan.id), source };
        let (rows, row_len) = if view.shape.len() == 1 { (view.row_len(), 1) } else { (view.rows(), view.row_len()) };
        let of_rows = |bytes: &[u8]| -> Vec<u8> {
            let row_bytes = bytes.len() / rows.max(1);
            let source = |row| &bytes[checkpoint.config().hf_row_source(plan.id, row) * row_bytes..][..row_bytes];
            (0..rows).flat_map(source).copied().collect()
        };
        match plan.format {
            MatrixFormat::Block(dtype) => {
                let bytes = of_rows(&view.bytes);
                let sources: Vec<&[u8]> = bytes.chunks((bytes.len() / rows.max(1)).max(1)).collect();
                let mut out = Vec::new();
                let distortion = encode_rows(view.dtype, dtype, &sources, row_len, None, &mut out).map_err(named)?;
                let parts = match self.scheme.is_sparse(plan.id, plan.format, row_len) {
                    true => self.scheme.pack(plan.id, [rows, row_len], &out, 0.0),
                    false => vec![out],
                };
                let bytes = self.write_parts(&parts)?;
                Ok(Written { bytes, relative_rms_error: distortion.relative_rms() })
            }
            MatrixFormat::Int(_) | MatrixFormat::Lookup(_) => {
                let dtype = plan.format.dtype();
                let (blocks, error) = if is_done {
                    (view.bytes.into_owned(), 0.0)
                } else {
                    let values = decode(edited, plan.id)?;
                    let blocks = plan.format.encode(&values, row_len, importance).map_err(named)?;
                    let decoded = decode_blocks(dtype, &blocks, row_len, values.len())?;
                    (blocks, Distortion::between(&values, &decoded).relative_rms())
                };
                let scale = edited.input_scale(plan.id).unwrap_or_default();
                let parts = self.scheme.pack(plan.id, [rows, row_len], &of_rows(&blocks), scale);
                Ok(Written { bytes: self.write_parts(&parts)?, relative_rms_error: error })
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<u64, CompressError> {
        let bytes = self.weights.finish()?;
        self.folder.finish()?;
        Ok(bytes)
    }
}
