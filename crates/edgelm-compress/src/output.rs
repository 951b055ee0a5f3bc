//! A model of changed shape on its way to disk, tensor by tensor: a GGUF file, or a Hugging Face folder.

use crate::{
    CompressError, MatrixFormat,
    fuse::Fuse,
    is_gguf,
    quantize::refuse_overwriting_input,
    tensor_pass::{encode_rows, offset_f32},
};
use edgelm_format::{StagedFolder, gguf, safetensors};
use edgelm_model::{Edited, ModelConfig, TensorId, Tensors};
use edgelm_tensor::DType;
use std::{collections::BTreeMap, path::Path};

/// A model in the making. Dropped before `finish`, it leaves nothing behind.
pub(crate) struct Output {
    writer: Writer,
    fuse: Fuse,
    /// Of the tensors still to come.
    dtypes: std::vec::IntoIter<DType>,
    hidden_size: usize,
}

enum Writer {
    Gguf(gguf::Writer),
    Folder { weights: safetensors::Writer, folder: StagedFolder },
}

impl Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CompressError> {
        match self {
            Self::Gguf(writer) => writer.write(bytes)?,
            Self::Folder { weights, .. } => weights.write(bytes)?,
        }
        Ok(())
    }
}

/// Format in which a tensor that is changed is stored: as it was, F16 where it was quantized.
pub(crate) fn stored_dtype(was: DType) -> DType {
    if was.is_quantized() { DType::F16 } else { was }
}

/// Takes some rows of a matrix.
pub(crate) type WriteRows<'a> = dyn FnMut(&[f32]) -> Result<(), CompressError> + 'a;

impl Output {
    /// Declares every tensor of `config`. `edited` has the layers of the output already, `stored` says in which format a tensor
    /// will be.
    pub fn create(
        path: &Path,
        edited: &Edited<'_>,
        config: &ModelConfig,
        stored: impl Fn(TensorId) -> Result<DType, CompressError>,
    ) -> Result<Self, CompressError> {
        let checkpoint = edited.base();
        refuse_overwriting_input(checkpoint, path)?;
        let is_gguf = is_gguf(path);
        let mut tensors = Vec::new();
        let mut dtypes = Vec::new();
        let extras = if is_gguf { config.gguf_extra_tensors() } else { Vec::new() };
        for (name, shape, _) in &extras {
            tensors.push((name.clone(), DType::F32, shape.clone()));
        }
        let fuse = Fuse::new(if is_gguf { &config.arch.gguf_names } else { &config.arch.hf_names }, config);
        let ids = config.tensor_ids();
        // What is stored as one has one format: that of its first.
        let format = |id: TensorId| stored(fuse.members(id).first().copied().unwrap_or(id));
        // Gains and biases are few; llama.cpp expects them in f32.
        let format = |id: TensorId| if is_gguf && !id.is_matrix() { Ok(DType::F32) } else { format(id) };
        for &id in &ids {
            dtypes.push(format(id)?);
        }
        for declared in fuse.declare(&ids) {
            tensors.push((declared.name, format(declared.members[0])?, declared.shape));
        }
        let (dtypes, hidden_size) = (dtypes.into_iter(), config.hidden_size);
        if !is_gguf {
            let files = checkpoint.hf_files_with(config, edited.layers(), None)?;
            let folder = StagedFolder::create(path)?;
            for (name, content) in files {
                folder.write(&name, &content)?;
            }
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            let weights = safetensors::Writer::create(&folder.path().join("model.safetensors"), &tensors, &metadata)?;
            return Ok(Self { writer: Writer::Folder { weights, folder }, fuse, dtypes, hidden_size });
        }
        let metadata = checkpoint.gguf_metadata_with(config)?;
        let mut writer = gguf::Writer::create(path, &metadata, &tensors)?;
        for (_, _, values) in &extras {
            writer.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(Self { writer: Writer::Gguf(writer), fuse, dtypes, hidden_size })
    }

    /// Writes the next tensor, in the order of `config.tensor_ids()`; returns how many of its values are zero.
    pub fn write(&mut self, edited: &Edited<'_>, id: TensorId) -> Result<u64, CompressError> {
        let view = edited.tensor(id)?;
        let named = |source| CompressError::Tensor { name: edited.base().stored_name(edited.source(id)), source };
        // A bias is one row of values that move like the rows of its weight: single values are its rows.
        let (rows, row_len) = if view.shape.len() == 1 { (view.row_len(), 1) } else { (view.rows(), view.row_len()) };
        let row_bytes = view.dtype.row_bytes(row_len).map_err(named)?;
        let config = edited.config();
        let source = |row: usize| {
            let row = match self.writer {
                Writer::Gguf(_) => config.gguf_row_source(id, row),
                Writer::Folder { .. } => config.hf_row_source(id, row),
            };
            &view.bytes[row * row_bytes..][..row_bytes]
        };
        let sources: Vec<&[u8]> = (0..rows).map(source).collect();
        let dtype = self.dtypes.next().unwrap_or(view.dtype);
        let mut bytes = Vec::with_capacity(view.bytes.len());
        encode_rows(view.dtype, dtype, &sources, row_len, None, &mut bytes).map_err(named)?;
        if let Writer::Gguf(_) = self.writer {
            offset_f32(&mut bytes, config.gguf_offset(id));
        }
        let zeros = zeros(dtype, &bytes);
        if let Some(bytes) = self.fuse.push(id, bytes)? {
            self.fuse.split(id, &bytes).try_for_each(|part| self.writer.write(part))?;
        }
        Ok(zeros)
    }

    /// Writes the next tensor, an embedding or output head, whose rows `give` passes on in their order.
    pub fn write_table(
        &mut self,
        id: TensorId,
        give: &mut dyn FnMut(&mut WriteRows<'_>) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let dtype = self.dtypes.next().unwrap_or(DType::F32);
        let columns = self.hidden_size;
        give(&mut |values| {
            let named = |source| CompressError::Tensor { name: format!("{id:?}"), source };
            let bytes = MatrixFormat::Block(dtype).encode(values, columns, None).map_err(named)?;
            self.writer.write(&bytes)
        })
    }

    /// Puts it under its name; returns the bytes of the weights' file.
    pub fn finish(self) -> Result<u64, CompressError> {
        match self.writer {
            Writer::Gguf(writer) => Ok(writer.finish()?),
            Writer::Folder { weights, folder } => {
                let bytes = weights.finish()?;
                folder.finish()?;
                Ok(bytes)
            }
        }
    }
}

/// Values of a float format that are zero; none of a quantized one count.
fn zeros(dtype: DType, bytes: &[u8]) -> u64 {
    let is_zero = |value: &[u8]| {
        // Either sign.
        value.split_last().is_some_and(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|byte| *byte == 0))
    };
    if dtype.is_quantized() {
        return 0;
    }
    bytes.chunks_exact(dtype.block_bytes()).filter(|value| is_zero(value)).count() as u64
}
