//! A typed, lazily read view of a model on disk (or in the binary).

use crate::{ChatTemplate, GenerationConfig, ModelConfig, ModelError, TensorId, Tokenizer};
use edgelm_format::{TensorView, gguf};
use std::path::Path;

/// A model compiled into the program: file name and bytes, as they would lie in a Hugging Face folder.
pub type Embedded = &'static [(&'static str, &'static [u8])];

/// Where the tensors came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StorageKind {
    Safetensors,
    Gguf,
}

/// Config, tensors, tokenizer, chat template. Opening checks every tensor's presence and shape; nothing is loaded.
pub struct Checkpoint {
    _private: (),
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let _ = path;
        todo!()
    }
    /// Opens a model compiled into the program.
    pub fn open_embedded(name: &str, files: Embedded) -> Result<Self, ModelError> {
        let _ = (name, files);
        todo!()
    }
    /// Normalized config.
    pub fn config(&self) -> &ModelConfig {
        todo!()
    }
    /// Sampling defaults that came with the model.
    pub fn generation(&self) -> &GenerationConfig {
        todo!()
    }
    /// Which kind of file.
    pub fn storage(&self) -> StorageKind {
        todo!()
    }
    /// Name for messages and `/v1/models`: folder name or file stem.
    pub fn name(&self) -> &str {
        todo!()
    }
    /// Tensors present, in walk order: embedding, layers, output norm, output.
    pub fn tensor_ids(&self) -> &[TensorId] {
        todo!()
    }
    /// A tensor's bytes. Errors if absent.
    pub fn tensor(&self, id: TensorId) -> Result<TensorView<'_>, ModelError> {
        let _ = id;
        todo!()
    }
    /// True if stored (biases, output head and q/k norms are optional).
    pub fn has(&self, id: TensorId) -> bool {
        let _ = id;
        todo!()
    }
    /// Name as stored in the file.
    pub fn stored_name(&self, id: TensorId) -> String {
        let _ = id;
        todo!()
    }
    /// Lets the kernel drop the pages of a tensor that was read.
    pub fn release(&self, id: TensorId) {
        let _ = id;
    }
    /// TEMP
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        todo!()
    }
    /// TEMP
    pub fn gguf_extra_tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        todo!()
    }
    /// TEMP
    pub fn gguf_notes(&self) -> Vec<String> {
        todo!()
    }
    /// Total weights.
    pub fn parameters(&self) -> u64 {
        todo!()
    }
    /// Bytes of the weight files.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
    /// True if the model came with a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        todo!()
    }
    /// The tokenizer; an error that says what is missing where there is none. Built once.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        todo!()
    }
    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, ModelError> {
        todo!()
    }
    /// GGUF metadata that describes this model: architecture keys, tokenizer, chat template, `general.*`
    /// (for HF folders made anew; for GGUF files copied), without `general.file_type`.
    pub fn gguf_metadata(&self) -> Result<gguf::Metadata, ModelError> {
        todo!()
    }
}
