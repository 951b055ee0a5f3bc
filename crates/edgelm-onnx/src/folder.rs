//! A folder that appears when it is complete.

use crate::OnnxError;
use edgelm_format::{StagedFolder, write_file};
use edgelm_model::Checkpoint;
use std::path::{Path, PathBuf};

pub(crate) struct Folder {
    staged: StagedFolder,
    target: PathBuf,
    names: Vec<String>,
    bytes: u64,
}

impl Folder {
    /// Errors where something is in the way, the model itself among it.
    pub(crate) fn create(checkpoint: &Checkpoint, target: &Path) -> Result<Self, OnnxError> {
        if let (Ok(output), Ok(input)) = (target.canonicalize(), checkpoint.path().canonicalize())
            && output == input
        {
            return Err(OnnxError::OutputIsInput { path: output });
        }
        Ok(Self { staged: StagedFolder::create(target)?, target: target.into(), names: Vec::new(), bytes: 0 })
    }

    /// Where it lies until it is complete.
    pub(crate) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// The name that a file of it will have.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    pub(crate) fn write(&mut self, name: &str, content: &[u8]) -> Result<(), OnnxError> {
        write_file(&self.path().join(name), content)?;
        self.add(name, content.len() as u64);
        Ok(())
    }

    /// A file that was written into it.
    pub(crate) fn add(&mut self, name: &str, bytes: u64) {
        self.names.push(name.to_owned());
        self.bytes += bytes;
    }

    /// Puts it under its name; its files and their size.
    pub(crate) fn finish(mut self) -> Result<(Vec<PathBuf>, u64), OnnxError> {
        self.names.sort_unstable();
        let files = self.names.iter().map(|name| self.target.join(name)).collect();
        self.staged.finish()?;
        Ok((files, self.bytes))
    }
}
