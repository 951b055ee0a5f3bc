//! Into a Hugging Face folder.

use super::{
    Out, Plan, Written,
    folder_scheme::{Storage, is_linear},
};
use crate::{
    CompressError, MatrixFormat,
    fuse::Fuse,
    layer_pass::{decode, decode_blocks},
    tensor_pass::{Distortion, encode_rows},
};
use edgelm_format::{
    StagedFolder,
    bitsandbytes::FourBitConfig,
    compressed_tensors::{Activations, Group, IntQuantization, Packing, declare_sparse, pack_sparse},
    safetensors::{Element, Writer},
};
use edgelm_model::{Checkpoint, Edited, TensorId, Tensors};
use edgelm_tensor::LookupFormat;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

pub(super) struct FolderOut {
    folder: StagedFolder,
    weights: Writer,
    storage: Storage,
    fuse: Fuse,
}

impl FolderOut {
    pub fn create(
        checkpoint: &Checkpoint,
        output: &Path,
        plans: &[Plan],
        storage: Storage,
    ) -> Result<Self, CompressError> {
        let mut declared = Vec::new();
        let mut config = ConfigParts::default();
        let fuse = Fuse::new(&checkpoint.config().arch.hf_names, checkpoint.config());
        let order: Vec<TensorId> = plans.iter().map(|plan| plan.id).collect();
        for tensor in fuse.declare(&order) {
            let shape = tensor.shape;
            let Some(plan) = plans.iter().find(|plan| plan.id == tensor.members[0]) else { continue };
            let matrix = [shape.first().copied().unwrap_or(0), shape.last().copied().unwrap_or(0)];
            let name = module(&tensor.name);
            // Blocks of a matrix that is stored [in, out], or beside those of other experts, have no place in such files.
            let is_plain = fuse.is_alone(plan.id) || shape.len() == 2 && fuse.has_whole_rows(plan.id);
            if plan.format.is_quantized() && !is_plain {
                return Err(CompressError::Fused { name: tensor.name });
            }
            match plan.format {
                MatrixFormat::Block(dtype) => {
                    let element = Element::of(dtype).ok_or(CompressError::FolderFormat { dtype })?;
                    if storage.is_sparse(plan.id, plan.format, matrix[1]) {
                        declared.extend(declare_sparse(name, element, matrix));
                        config.has_sparse_floats = true;
                    } else {
                        declared.push((tensor.name.clone(), element, shape));
                        if plan.id.is_matrix() {
                            config.ignore.push(name.to_owned());
                        }
                    }
                }
                MatrixFormat::Int(_) | MatrixFormat::Lookup(_) => {
                    let activations = storage.activations(plan.id);
                    declared.extend(plan.format.declare(name, activations, matrix));
                    config.add(name, plan.format, activations, is_linear(plan.id));
                }
            }
        }
        // Where it is tied there is no such tensor, but still a module.
        if checkpoint.config().tie_word_embeddings {
            config.ignore.push(module(&checkpoint.config().arch.hf_tensor_name(TensorId::Output)).to_owned());
        }
        let layers: Vec<usize> = (0..checkpoint.config().layers.len()).collect();
        let files = checkpoint.hf_files_with(checkpoint.config(), &layers, config.finish())?;
        let folder = StagedFolder::create(output)?;
        for (name, content) in files {
            folder.write(&name, &content)?;
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = Writer::create_typed(&folder.path().join("model.safetensors"), &declared, &metadata)?;
        Ok(Self { folder, weights, storage, fuse })
    }

    /// Returns their bytes.
    fn write_parts(&mut self, parts: &[Vec<u8>]) -> Result<u64, CompressError> {
        parts.iter().try_for_each(|part| self.weights.write(part))?;
        Ok(parts.iter().map(|part| part.len() as u64).sum())
    }
}

/// What `quantization_config` is made of.
#[derive(Default)]
struct ConfigParts {
    /// Matrices stored alike; tables apart from linear layers, because these may be named by their class.
    groups: Vec<(Group, bool)>,
    lookup: Option<LookupFormat>,
    has_sparse_floats: bool,
    /// Modules that are not quantized.
    ignore: Vec<String>,
}

impl ConfigParts {
    /// A matrix that is not floats.
    fn add(&mut self, module: &str, format: MatrixFormat, activations: Activations, is_linear: bool) {
        let settings = match format {
            MatrixFormat::Block(_) => return,
            MatrixFormat::Lookup(settings) => {
                self.lookup = Some(settings.format);
                return;
            }
            MatrixFormat::Int(settings) => settings,
        };
        let mut wanted = settings.group(activations);
        match self.groups.iter_mut().find(|(group, of)| *of == is_linear && is_stored_as(group, &wanted)) {
            Some((group, _)) => group.targets.push(module.to_owned()),
            None => {
                wanted.targets.push(module.to_owned());
                self.groups.push((wanted, is_linear));
            }
        }
    }

    /// `None` where nothing is quantized.
    fn finish(mut self) -> Option<Value> {
        if let Some(format) = self.lookup {
            return Some(FourBitConfig { format, skipped: self.ignore }.to_json());
        }
        self.groups.sort_by_key(|(_, is_linear)| !is_linear);
        if let [(linear, true)] | [(linear, true), (_, false), ..] = &mut self.groups[..] {
            linear.targets = vec!["Linear".to_owned()];
        }
        let groups: Vec<Group> = self.groups.into_iter().map(|(group, _)| group).collect();
        // Of sparse integers in words their own packing says so itself.
        let is_bitmask = |group: &&Group| group.format.is_sparse() && group.packing == Packing::Bytes;
        let mut sparse: Vec<String> =
            groups.iter().filter(is_bitmask).flat_map(|group| group.targets.clone()).collect();
        if self.has_sparse_floats {
            sparse.push("Linear".to_owned());
        }
        let is_any = !groups.is_empty() || !sparse.is_empty();
        is_any.then(|| IntQuantization { groups, ignore: self.ignore, sparse }.to_json())
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
                let bytes = out.len() as u64;
                if let Some(out) = self.fuse.push(plan.id, out)? {
                    let rows = self.fuse.stored_rows(plan.id).unwrap_or(rows);
                    let parts: Vec<Vec<u8>> = match self.storage.is_sparse(plan.id, plan.format, row_len) {
                        true => pack_sparse(dtype.block_bytes(), [rows, row_len], &out).into(),
                        false => self.fuse.split(plan.id, &out).map(<[u8]>::to_vec).collect(),
                    };
                    self.write_parts(&parts)?;
                }
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
                let activations = self.storage.activations(plan.id);
                let mut bytes = 0;
                if let Some(blocks) = self.fuse.push(plan.id, of_rows(&blocks))? {
                    let rows = self.fuse.stored_rows(plan.id).unwrap_or(rows);
                    bytes = self.write_parts(&plan.format.pack(activations, [rows, row_len], &blocks, scale))?;
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
