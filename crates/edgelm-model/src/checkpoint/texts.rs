//! Tokenizer and chat template: what a model needs for text, with or without its weights.

use super::{Embedded, files::Files, open::is_gguf};
use crate::{ChatTemplate, GenerationConfig, ModelError, Tokenizer};
use edgelm_format::gguf::{GgufFile, Value};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Where they are written down.
enum Origin {
    Folder(Files),
    Gguf(Arc<GgufFile>),
}

/// The text side of a model. Needs neither weights nor a config; both parts are built when first asked for.
pub struct Texts {
    path: PathBuf,
    origin: Origin,
    tokenizer: OnceLock<Tokenizer>,
    template: OnceLock<Option<ChatTemplate>>,
}

impl Texts {
    /// Opens a folder with a `tokenizer.json` or a chat template in it, or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(if is_gguf(path)? {
            Self::of_gguf(path, Arc::new(GgufFile::open(path)?))
        } else {
            Self::of_folder(Files::Folder(path.to_owned()))
        })
    }

    /// Opens a model compiled into the program.
    pub fn open_embedded(name: &str, files: Embedded) -> Self {
        Self::of_folder(Files::Embedded(name.into(), files))
    }

    pub(super) fn of_folder(files: Files) -> Self {
        Self::new(files.root().to_owned(), Origin::Folder(files))
    }

    pub(super) fn of_gguf(path: &Path, file: Arc<GgufFile>) -> Self {
        Self::new(path.to_owned(), Origin::Gguf(file))
    }

    fn new(path: PathBuf, origin: Origin) -> Self {
        Self { path, origin, tokenizer: OnceLock::new(), template: OnceLock::new() }
    }

    /// The folder, where it is one.
    pub(super) fn files(&self) -> Option<&Files> {
        match &self.origin {
            Origin::Folder(files) => Some(files),
            Origin::Gguf(_) => None,
        }
    }

    /// True if there is a tokenizer (which may still turn out to be unreadable).
    pub fn has_tokenizer(&self) -> bool {
        match &self.origin {
            Origin::Folder(files) => files.names().iter().any(|name| name == "tokenizer.json"),
            Origin::Gguf(file) => {
                file.get_meta("tokenizer.ggml.model").and_then(Value::as_str).is_some_and(|model| model != "none")
            }
        }
    }

    /// The tokenizer; an error that says what is missing where there is none. Built once.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let built = match &self.origin {
            Origin::Folder(files) => {
                let text = files.read("tokenizer.json")?.ok_or_else(|| {
                    ModelError::Tokenizer(format!("no `tokenizer.json` in `{}`", self.path.display()))
                })?;
                Tokenizer::from_json(&text, files.read("tokenizer_config.json")?.as_deref())?
            }
            Origin::Gguf(file) => Tokenizer::from_gguf(file.metadata())?,
        };
        // If another thread was faster its tokenizer is kept; they are equal.
        Ok(self.tokenizer.get_or_init(|| built))
    }

    /// Sampling defaults and the ids that end an answer, where a `generation_config.json` says them.
    pub fn generation(&self) -> Result<Option<(GenerationConfig, Vec<u32>)>, ModelError> {
        let Origin::Folder(files) = &self.origin else { return Ok(None) };
        let bytes = files.read("generation_config.json")?;
        bytes.map(|bytes| GenerationConfig::from_hf(&bytes, &self.path.join("generation_config.json"))).transpose()
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, ModelError> {
        if let Some(template) = self.template.get() {
            return Ok(template.as_ref());
        }
        let built = match &self.origin {
            Origin::Folder(files) => {
                let jinja = files.read_text("chat_template.jinja")?;
                ChatTemplate::from_hf(files.read("tokenizer_config.json")?.as_deref(), jinja.as_deref())?
            }
            Origin::Gguf(file) => gguf_template(file)?,
        };
        Ok(self.template.get_or_init(|| built).as_ref())
    }
}

/// The template of a GGUF file, with the texts of the special tokens it may write.
fn gguf_template(file: &GgufFile) -> Result<Option<ChatTemplate>, ModelError> {
    let Some(source) = file.get_meta("tokenizer.chat_template").and_then(Value::as_str) else { return Ok(None) };
    let text = |kind: &str| {
        let id = file.get_meta(&format!("tokenizer.ggml.{kind}_token_id")).and_then(Value::as_u64)?;
        let tokens = file.get_meta("tokenizer.ggml.tokens").and_then(Value::as_strings)?;
        tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    };
    ChatTemplate::new(source, text("bos"), text("eos")).map(Some)
}
