//! The texts beside the weights: a folder on disk, or one compiled in.

use super::Embedded;
use crate::ModelError;
use edgelm_format::{FormatError, Source, safetensors::SafeTensors};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

/// A tokenizer.json of the largest vocabularies has 35 MB.
const MAX_TEXT_BYTES: u64 = 1 << 28;

/// A Hugging Face folder.
pub(super) enum Files {
    Folder(PathBuf),
    /// Name and content.
    Embedded(PathBuf, Embedded),
}

impl Files {
    pub(super) fn root(&self) -> &Path {
        match self {
            Files::Folder(path) | Files::Embedded(path, _) => path,
        }
    }

    /// A file's bytes, `None` if there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        let folder = match self {
            Files::Embedded(_, files) => {
                return Ok(files.iter().find(|file| file.0 == name).map(|file| Cow::Borrowed(file.1)));
            }
            Files::Folder(folder) => folder,
        };
        let path = folder.join(name);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FormatError::Io { path, action: "reading", source }.into()),
        };
        if size > MAX_TEXT_BYTES {
            let what = format!("has {size} bytes, more than the {MAX_TEXT_BYTES} that such a file may have");
            return Err(ModelError::Config { path, what });
        }
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(source) => Err(FormatError::Io { path, action: "reading", source }.into()),
        }
    }

    /// The same as text.
    pub(super) fn read_text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(ModelError::Config { path: self.root().join(name), what: "is not UTF-8".to_owned() }),
        }
    }

    /// The weights. Errors say what the folder holds instead, if anything.
    pub(super) fn open_weights(&self) -> Result<SafeTensors, ModelError> {
        let names = self.names();
        let has = |name: &str| names.iter().any(|other| other == name);
        if !has("model.safetensors") && !has("model.safetensors.index.json") {
            let other = names.iter().find(|name| [".bin", ".pt", ".pth", ".h5"].iter().any(|end| name.ends_with(end)));
            let what = match other {
                Some(other) => format!("no `model.safetensors` here; `{other}` is in a format that is not read"),
                None => "neither `model.safetensors` nor `model.safetensors.index.json` here".to_owned(),
            };
            return Err(ModelError::Config { path: self.root().to_owned(), what });
        }
        Ok(match self {
            Files::Folder(path) => SafeTensors::open_dir(path)?,
            Files::Embedded(_, files) => {
                let shards = files.iter().filter(|file| file.0.ends_with(".safetensors"));
                SafeTensors::from_sources(shards.map(|file| Source::embedded(file.0, file.1)).collect())?
            }
        })
    }

    /// File names, sorted; unreadable ones are left out.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Files::Embedded(_, files) => files.iter().map(|file| file.0.to_owned()).collect(),
            Files::Folder(path) => std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
        };
        names.sort_unstable();
        names
    }
}
