//! A typed, lazily read view of a model on disk (or in the binary).
//!
//! The one thing a reader would get wrong: opening reads the config and the tensor directory, never a weight; the
//! tokenizer and the chat template are built when first asked for.

mod edited;
mod export;
mod export_hf;
mod files;
mod form;
mod open;
mod packed;
mod part;
mod texts;
mod verify;

pub use edited::{Edited, Replaced, Tensors};
pub use export_hf::HfFile;
pub use texts::Texts;

use crate::arch::{Names, Prefix, Stored};
use crate::{ChatTemplate, GenerationConfig, ModelConfig, ModelError, TensorId, Tokenizer};
use edgelm_format::{IntLayout, Ints, Reordered, Source, TensorView, gguf::GgufFile, safetensors::SafeTensors};
use edgelm_tensor::{
    DType,
    block::{decode_row, encode_row},
};
use files::Files;
use form::Form;
use packed::PackedFolder;
use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A model compiled into the program: file name and bytes, as they would lie in a Hugging Face folder.
pub type Embedded = &'static [(&'static str, &'static [u8])];

/// Where the tensors came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StorageKind {
    Safetensors,
    Gguf,
}

/// The weight files.
enum Store {
    Safetensors(SafeTensors),
    Packed(PackedFolder),
    Gguf(Arc<GgufFile>),
}

impl Store {
    fn kind(&self) -> StorageKind {
        match self {
            Store::Safetensors(_) | Store::Packed(_) => StorageKind::Safetensors,
            Store::Gguf(_) => StorageKind::Gguf,
        }
    }

    fn get(&self, name: &str) -> Result<Option<TensorView<'_>>, ModelError> {
        Ok(match self {
            Store::Safetensors(file) => file.get(name)?,
            Store::Packed(folder) => folder.get(name)?,
            Store::Gguf(file) => file.get(name)?,
        })
    }

    /// Format and shape, without reading the values.
    fn describe(&self, name: &str) -> Result<Option<(DType, &[usize])>, ModelError> {
        Ok(match self {
            Store::Safetensors(file) => file.get(name)?.map(|view| (view.dtype, view.shape)),
            Store::Packed(folder) => folder.describe(name)?,
            Store::Gguf(file) => file.get(name)?.map(|view| (view.dtype, view.shape)),
        })
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Store::Safetensors(file) => file.names().collect(),
            Store::Packed(folder) => folder.names(),
            Store::Gguf(file) => file.names().collect(),
        }
    }

    fn source_of(&self, name: &str) -> Option<&Source> {
        match self {
            Store::Safetensors(file) => file.source_of(name),
            Store::Packed(folder) => folder.source_of(name),
            Store::Gguf(file) => file.source_of(name),
        }
    }
}

/// Config, tensors, tokenizer, chat template. Opening checks every tensor's presence and shape; nothing is loaded.
pub struct Checkpoint {
    path: PathBuf,
    name: String,
    config: ModelConfig,
    generation: GenerationConfig,
    store: Arc<Store>,
    ids: Vec<TensorId>,
    shapes: HashMap<TensorId, Vec<usize>>,
    prefix: Prefix,
    texts: Arc<Texts>,
    /// Where it is shown otherwise than the files have it.
    form: Option<Form>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a `.gguf` file.
    ///
    /// Errors name what is missing or wrong: a file, a config key, a tensor that is absent, superfluous or of another
    /// shape than the config says. Not superfluous: buffers that old exports stored (`rotary_emb.inv_freq` …), and an
    /// output head beside `tie_word_embeddings: true`, which is ignored as transformers ignores it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        open::from_path(path)
    }

    /// Opens a model compiled into the program.
    pub fn open_embedded(name: &str, files: Embedded) -> Result<Self, ModelError> {
        open::from_folder(name.to_owned(), Files::Embedded(name.into(), files))
    }

    /// Normalized config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sampling defaults that came with the model.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Which kind of file.
    pub fn storage(&self) -> StorageKind {
        self.store.kind()
    }

    /// Name for messages and `/v1/models`: folder name or file stem.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder or file that was opened; the name of an embedded model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensors present, in walk order: embedding, layers, output norm, output.
    pub fn tensor_ids(&self) -> &[TensorId] {
        &self.ids
    }

    /// A tensor's bytes. Errors if absent.
    pub fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError> {
        match self.changed(id)? {
            Some(changed) => Ok(changed),
            None => self.of_files(self.source_id(id)),
        }
    }

    /// The same as the files hold it.
    fn of_files(&self, id: TensorId) -> Result<TensorView<'_>, ModelError> {
        let Some(shape) = self.file_shapes().get(&id) else { return Err(self.missing(id)) };
        let stored = self.stored(id);
        if stored.spread.is_some() {
            return self.gathered(id, &stored, shape);
        }
        if let (Store::Packed(folder), Some((expert, _))) = (&*self.store, stored.expert)
            && folder.is_packed(&stored.name)
        {
            // Codes are unpacked for this expert alone.
            let alone = Stored { expert: None, shape: stored.shape[1..].to_vec(), ..stored };
            let rows = alone.shape[0];
            let bytes = folder.rows(&alone.name, expert * rows..(expert + 1) * rows)?;
            let bytes = bytes.ok_or_else(|| self.missing(id))?.into();
            let view = TensorView { dtype: self.describe_file(id)?.0, shape, bytes };
            return Ok(part::of(view, &alone, shape));
        }
        let view = self.store.get(&stored.name)?.ok_or_else(|| self.missing(id))?;
        Ok(part::of(view, &stored, shape))
    }

    /// A tensor whose rows are tensors of their own.
    fn gathered<'a>(&'a self, id: TensorId, stored: &Stored, shape: &'a [usize]) -> Result<TensorView<'a>, ModelError> {
        let (dtype, _) = self.describe_file(id)?;
        let mut bytes = Vec::new();
        for name in stored.names() {
            let row = self.store.get(&name)?.filter(|row| row.dtype == dtype).ok_or_else(|| self.missing(id))?;
            bytes.extend_from_slice(&row.bytes);
        }
        Ok(TensorView { dtype, shape, bytes: bytes.into() })
    }

    fn missing(&self, id: TensorId) -> ModelError {
        ModelError::MissingTensor { path: self.path.clone(), name: self.stored_name(id) }
    }

    /// True if the model has it (biases, output head and q/k norms are optional).
    pub fn has(&self, id: TensorId) -> bool {
        self.config.tensor_shape(id).is_some()
    }

    /// Name as stored in the file; of the tensor it is a part of, where it is one.
    pub fn stored_name(&self, id: TensorId) -> String {
        names(self.source(), self.storage()).name(self.prefix, self.source_id(id))
    }

    fn stored(&self, id: TensorId) -> Stored {
        stored(self.source(), &self.store, self.prefix, id)
    }

    /// Format and shape of a tensor, without reading its values. Errors if absent.
    pub fn describe(&self, id: TensorId) -> Result<(DType, &[usize]), ModelError> {
        let (dtype, _) = self.describe_file(self.source_id(id))?;
        match self.shapes.get(&id) {
            Some(shape) => Ok((self.changed_dtype(id, dtype), shape)),
            None => Err(self.missing(id)),
        }
    }

    /// The same of what the files hold.
    fn describe_file(&self, id: TensorId) -> Result<(DType, &[usize]), ModelError> {
        let name = self.stored(id).names().swap_remove(0);
        match (self.store.describe(&name)?, self.file_shapes().get(&id)) {
            (Some((dtype, _)), Some(shape)) => Ok((dtype, shape)),
            _ => Err(self.missing(id)),
        }
    }

    /// Format and bytes of one row of a matrix, without reading the others. Errors if absent.
    pub fn row(&self, id: TensorId, row: usize) -> Result<(DType, Cow<'_, [u8]>), ModelError> {
        if self.is_changed(id) {
            let (dtype, shape) = self.describe(id)?;
            let mut values = vec![0.0; shape.last().copied().unwrap_or(1)];
            self.values(id, row..row + 1, &mut values)?;
            let mut bytes = vec![0; dtype.row_bytes(values.len())?];
            encode_row(dtype, &values, None, &mut bytes)?;
            return Ok((dtype, bytes.into()));
        }
        let id = self.source_id(id);
        if let Store::Packed(folder) = &*self.store
            && self.stored(id).rows.is_none()
            && let Some(bytes) = folder.rows(&self.stored_name(id), row..row + 1)?
        {
            return Ok((self.describe_file(id)?.0, bytes.into()));
        }
        Ok(row_of(self.of_files(id)?, row))
    }

    /// Rows of a matrix as the values that the file means, in f32: what [`Self::tensor`] holds them in, some formats round
    /// a little. Errors if the tensor is absent, or has not so many rows, or `out` is not of their length.
    pub fn values(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<(), ModelError> {
        let name = self.stored_name(id);
        let (_, shape) = self.describe(id)?;
        let columns = shape.last().copied().unwrap_or(1);
        let count: usize = shape.iter().rev().skip(1).product();
        if rows.end > count || out.len() != rows.len() * columns {
            let got = vec![rows.end, out.len()];
            return Err(ModelError::TensorShape { name, got, want: shape.to_vec() });
        }
        if self.changed_values(id, rows.clone(), out)? {
            return Ok(());
        }
        self.values_of_files(self.source_id(id), rows, out)
    }

    /// The same as the files mean it; `rows` and `out` fit the tensor.
    fn values_of_files(&self, id: TensorId, rows: Range<usize>, out: &mut [f32]) -> Result<(), ModelError> {
        let (dtype, shape) = self.describe_file(id)?;
        let columns = shape.last().copied().unwrap_or(1);
        let (name, stored) = (self.stored_name(id), self.stored(id));
        if let Store::Packed(folder) = &*self.store
            && folder.is_packed(&name)
            && !stored.transposed
            && stored.expert.is_none()
        {
            for (row, out) in rows.zip(out.chunks_exact_mut(columns.max(1))) {
                let row = stored.row(row);
                folder.values(&name, row..row + 1, out)?;
            }
            return Ok(());
        }
        let row_bytes = dtype.row_bytes(columns)?;
        let bytes = self.of_files(id)?.bytes;
        Ok(decode_row(dtype, &bytes[rows.start * row_bytes..rows.end * row_bytes], out)?)
    }

    /// The format in which the engine runs a matrix: that of [`Self::describe`], or of [`Self::reordered`]. Errors if absent.
    pub fn run_dtype(&self, id: TensorId) -> Result<DType, ModelError> {
        let dtype = self.describe(id)?.0;
        Ok(match &*self.store {
            Store::Packed(_) if self.is_changed(id) => dtype,
            Store::Packed(folder) => folder.run_dtype(&self.stored_name(id)).unwrap_or(dtype),
            Store::Safetensors(_) | Store::Gguf(_) => dtype,
        })
    }

    /// How another program quantized the model, in a line: method, bits, groups. `None` where no `quantization_config` says.
    pub fn quantization(&self) -> Option<&str> {
        match &*self.store {
            Store::Packed(folder) => Some(folder.summary()),
            Store::Safetensors(_) | Store::Gguf(_) => None,
        }
    }

    /// True if [`Self::values`] may be others than the floats of [`Self::tensor`], or those are none. Errors if the tensor is
    /// absent.
    pub fn is_coded(&self, id: TensorId) -> Result<bool, ModelError> {
        let dtype = self.describe(id)?.0;
        Ok(match &*self.store {
            Store::Packed(_) if !dtype.is_quantized() && self.is_changed(id) => false,
            Store::Packed(folder) => dtype.is_quantized() || folder.is_packed(&self.stored_name(id)),
            Store::Safetensors(_) | Store::Gguf(_) => dtype.is_quantized(),
        })
    }

    /// A matrix with its columns in an order that lets a smaller format hold it than that of [`Self::tensor`], where there is
    /// one: integers whose groups were made in the order of importance.
    pub fn reordered(&self, id: TensorId) -> Result<Option<Reordered>, ModelError> {
        match &*self.store {
            Store::Packed(_) if self.is_changed(id) => Ok(None),
            Store::Packed(folder) => {
                let id = self.source_id(id);
                let stored = self.stored(id);
                let Some(whole) = folder.reordered(&stored.name)? else { return Ok(None) };
                let Some(rows) = self.shapes.get(&id).and_then(|shape| shape.first()) else { return Ok(None) };
                let row_bytes = whole.bytes.len() / stored.shape[0].max(1);
                let row = |row: usize| &whole.bytes[stored.row(row) * row_bytes..][..row_bytes];
                Ok(Some(Reordered { bytes: (0..*rows).flat_map(row).copied().collect(), ..whole.clone() }))
            }
            Store::Safetensors(_) | Store::Gguf(_) => Ok(None),
        }
    }

    /// How a matrix looks as whole numbers with scales, where that changes none of its codes. Errors if absent.
    pub fn int_layout(&self, id: TensorId) -> Result<Option<IntLayout>, ModelError> {
        let (dtype, _) = self.describe(id)?;
        let stored = self.stored(self.source_id(id));
        match &*self.store {
            _ if self.is_changed(id) => Ok(None),
            Store::Packed(folder) if folder.is_packed(&stored.name) => {
                let is_plain = !stored.transposed && stored.expert.is_none() && stored.spread.is_none();
                Ok(if is_plain { folder.int_layout(&stored.name)? } else { None })
            }
            _ => Ok(IntLayout::of_blocks(dtype)),
        }
    }

    /// All rows of a matrix as [`Self::int_layout`] says. Errors if absent; empty where it says nothing.
    pub fn ints(&self, id: TensorId) -> Result<Ints, ModelError> {
        let mut ints = Ints::default();
        if self.is_changed(id) {
            return Ok(ints);
        }
        let stored = self.stored(self.source_id(id));
        let rows = self.describe(id)?.1.first().copied().unwrap_or(0);
        if let Store::Packed(folder) = &*self.store
            && folder.ints(&stored.name, (0..rows).map(|row| stored.row(row)), &mut ints)?
        {
            return Ok(ints);
        }
        let view = self.tensor(id)?;
        ints.extend_from_blocks(view.dtype, &view.bytes);
        Ok(ints)
    }

    /// The scale of a linear layer's int8 inputs, where calibration fixed it.
    pub fn input_scale(&self, id: TensorId) -> Option<f32> {
        match &*self.store {
            Store::Packed(_) if self.is_changed(id) => None,
            Store::Packed(folder) => folder.input_scale(&self.stored_name(id)),
            Store::Safetensors(_) | Store::Gguf(_) => None,
        }
    }

    /// Lets the kernel drop the pages of a tensor that was read.
    pub fn release(&self, id: TensorId) {
        let name = self.stored_name(id);
        if let Store::Packed(folder) = &*self.store
            && folder.release(&name)
        {
            return;
        }
        if let (Ok(Some(view)), Some(source)) = (self.store.get(&name), self.store.source_of(&name)) {
            source.release(&view.bytes);
        }
    }

    /// Lets the kernel drop the pages of a part of a tensor's bytes that was read.
    pub fn release_part(&self, id: TensorId, part: &[u8]) {
        if let Store::Packed(folder) = &*self.store
            && folder.release(&self.stored_name(id))
        {
            // It was a part of a copy.
            return;
        }
        if let Some(source) = self.store.source_of(&self.stored_name(id)) {
            source.release(part);
        }
    }

    /// Total weights. A tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// Bytes of the weight files.
    pub fn file_bytes(&self) -> u64 {
        match &*self.store {
            Store::Safetensors(file) => file.file_bytes(),
            Store::Packed(folder) => folder.file().file_bytes(),
            Store::Gguf(file) => file.file_bytes(),
        }
    }

    /// True if the model came with a tokenizer (which may still turn out to be unreadable).
    pub fn has_tokenizer(&self) -> bool {
        self.texts.has_tokenizer()
    }

    /// The tokenizer; an error that says what is missing where there is none. Built once.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        self.texts.tokenizer()
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, ModelError> {
        self.texts.chat_template()
    }
}

/// One row of a tensor; the last one where there are not so many.
fn row_of(view: TensorView<'_>, row: usize) -> (DType, Cow<'_, [u8]>) {
    let row_bytes = view.bytes.len() / view.rows().max(1);
    let start = row.min(view.rows().saturating_sub(1)) * row_bytes;
    let bytes = match view.bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[start..][..row_bytes]),
        Cow::Owned(bytes) => Cow::Owned(bytes[start..][..row_bytes].to_vec()),
    };
    (view.dtype, bytes)
}

/// Where a tensor lies in a store.
fn stored(config: &ModelConfig, store: &Store, prefix: Prefix, id: TensorId) -> Stored {
    let mut stored = names(config, store.kind()).stored(prefix, config, id);
    if let Store::Packed(folder) = store
        && stored.transposed
        && folder.is_packed(&stored.name)
    {
        // Codes are stored [out, in] whatever floats are.
        let last = stored.shape.len() - 1;
        stored.shape.swap(last, last - 1);
        stored.transposed = false;
    }
    stored
}

fn names(config: &ModelConfig, storage: StorageKind) -> &Names {
    match storage {
        StorageKind::Safetensors => &config.arch.hf_names,
        StorageKind::Gguf => &config.arch.gguf_names,
    }
}
