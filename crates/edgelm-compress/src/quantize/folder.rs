//! Into a Hugging Face folder, with integers as the `compressed-tensors` library stores them.

use super::{Out, Plan, Written};
use crate::{
    CompressError, IntSettings, MatrixFormat,
    layer_pass::{decode, decode_blocks},
    staged::Staged,
    tensor_pass::{Distortion, encode_rows},
};
use edgelm_format::{
    compressed_tensors::{Activations, Group, IntQuantization, Packing, declare_matrix, pack_matrix},
    safetensors::{Element, Writer},
};
use edgelm_model::{Checkpoint, Edited, TensorId, Tensors};
use edgelm_tensor::DType;
use std::{collections::BTreeMap, path::Path};

/// How a whole model is stored as integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntScheme {
    /// Linear layers.
    pub linear: IntSettings,
    /// Token embedding and output head.
    pub table: IntSettings,
    /// Inputs of the linear layers.
    pub activations: Activations,
}

/// A format, and the one that was wanted where it does not fit.
type Chosen = (MatrixFormat, Option<String>);

impl IntScheme {
    /// The format of a tensor with rows of `row_len`, stored as `dtype`. `keep`: what the user wants instead, which can only
    /// be a format that is not quantized.
    pub(super) fn choose(
        &self,
        id: TensorId,
        row_len: usize,
        dtype: DType,
        keep: Option<DType>,
    ) -> Result<Chosen, CompressError> {
        let float = float(dtype);
        if !id.is_matrix() {
            return Ok((float, None));
        }
        match keep {
            Some(dtype) if dtype.is_quantized() => return Err(CompressError::FolderFormat { dtype }),
            Some(dtype) => return Ok((MatrixFormat::Block(dtype), None)),
            None => {}
        }
        let settings = self.of(id);
        match settings.fits(row_len) {
            true => Ok((MatrixFormat::Int(settings), None)),
            false => Ok((float, Some(settings.to_string()))),
        }
    }

    fn of(&self, id: TensorId) -> IntSettings {
        if let TensorId::Layer(..) = id { self.linear } else { self.table }
    }
}

/// What is stored unquantized, of what was `dtype`.
pub(super) fn float(dtype: DType) -> MatrixFormat {
    MatrixFormat::Block(if dtype.is_quantized() { DType::F16 } else { dtype })
}

/// How a matrix is stored. `activations`: what happens to the inputs of linear layers.
fn group(id: TensorId, settings: IntSettings, activations: Activations) -> Group {
    let activations = if let TensorId::Layer(..) = id { activations } else { Activations::Any };
    let packing = if activations == Activations::Any { Packing::Words } else { Packing::Bytes };
    Group { targets: Vec::new(), format: settings.format, strategy: settings.strategy, activations, packing }
}

pub(super) struct FolderOut {
    folder: Staged,
    weights: Writer,
    activations: Activations,
}

impl FolderOut {
    pub fn create(
        checkpoint: &Checkpoint,
        output: &Path,
        plans: &[Plan],
        activations: Activations,
    ) -> Result<Self, CompressError> {
        let mut declared = Vec::new();
        // Matrices stored alike; tables apart, because the linear layers may be named by their class.
        let mut groups: Vec<(Group, bool)> = Vec::new();
        let mut ignore = Vec::new();
        for plan in plans {
            let shape = checkpoint.describe(plan.id)?.1.to_vec();
            match plan.format {
                MatrixFormat::Block(dtype) => {
                    let element = Element::of(dtype).ok_or(CompressError::FolderFormat { dtype })?;
                    declared.push((plan.name.clone(), element, shape));
                    if plan.id.is_matrix() {
                        ignore.push(module(&plan.name).to_owned());
                    }
                }
                MatrixFormat::Int(settings) => {
                    let shape = [shape.first().copied().unwrap_or(0), shape.last().copied().unwrap_or(0)];
                    let mut wanted = group(plan.id, settings, activations);
                    declared.extend(declare_matrix(module(&plan.name), &wanted, shape));
                    let is_linear = matches!(plan.id, TensorId::Layer(..));
                    let name = module(&plan.name).to_owned();
                    match groups.iter_mut().find(|(group, of)| *of == is_linear && is_stored_as(group, &wanted)) {
                        Some((group, _)) => group.targets.push(name),
                        None => {
                            wanted.targets.push(name);
                            groups.push((wanted, is_linear));
                        }
                    }
                }
            }
        }
        groups.sort_by_key(|(_, is_linear)| !is_linear);
        if let [(linear, true)] | [(linear, true), (_, false), ..] = &mut groups[..] {
            linear.targets = vec!["Linear".to_owned()];
        }
        let groups = groups.into_iter().map(|(group, _)| group).collect();
        // Where it is tied there is no such tensor, but still a module.
        if checkpoint.config().tie_word_embeddings {
            ignore.push(module(&checkpoint.config().arch.hf_tensor_name(TensorId::Output)).to_owned());
        }
        let quantization = IntQuantization { groups, ignore };
        let quantization = (!quantization.groups.is_empty()).then(|| quantization.to_json());
        let layers: Vec<usize> = (0..checkpoint.config().layers.len()).collect();
        let files = checkpoint.hf_files_with(checkpoint.config(), &layers, quantization)?;
        let folder = Staged::create(output)?;
        for (name, content) in files {
            folder.write(&name, &content)?;
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = Writer::create_typed(&folder.path().join("model.safetensors"), &declared, &metadata)?;
        Ok(Self { folder, weights, activations })
    }
}

/// Whether two groups differ in nothing but what they hold.
fn is_stored_as(a: &Group, b: &Group) -> bool {
    (a.format, a.strategy, a.activations, a.packing) == (b.format, b.strategy, b.activations, b.packing)
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
                self.weights.write(&out)?;
                Ok(Written { bytes: out.len() as u64, relative_rms_error: distortion.relative_rms() })
            }
            MatrixFormat::Int(settings) => {
                let dtype = plan.format.dtype();
                let (blocks, error) = if is_done {
                    (view.bytes.into_owned(), 0.0)
                } else {
                    let values = decode(edited, plan.id)?;
                    let blocks = plan.format.encode(&values, row_len, importance).map_err(named)?;
                    let decoded = decode_blocks(dtype, &blocks, row_len, values.len())?;
                    (blocks, Distortion::between(&values, &decoded).relative_rms())
                };
                let group = group(plan.id, settings, self.activations);
                let scale = edited.input_scale(plan.id).unwrap_or_default();
                let packed = pack_matrix(&group, [rows, row_len], &of_rows(&blocks), scale);
                let mut bytes = 0;
                for part in packed.parts {
                    bytes += part.len() as u64;
                    self.weights.write(&part)?;
                }
                Ok(Written { bytes, relative_rms_error: error })
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<u64, CompressError> {
        let bytes = self.weights.finish()?;
        self.folder.finish()?;
        Ok(bytes)
    }
}
