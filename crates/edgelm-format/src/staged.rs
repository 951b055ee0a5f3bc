//! A folder that appears when it is complete.

use crate::{FormatError, create_sibling, rename_synced, write_file};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// A folder under a temporary name beside the one that it will have.
pub struct StagedFolder {
    target: PathBuf,
    path: PathBuf,
    is_finished: bool,
}

impl StagedFolder {
    /// Errors where something is in the way that would be lost.
    pub fn create(target: &Path) -> Result<Self, FormatError> {
        refuse_replacing(target)?;
        let (path, ()) = create_sibling(target, |path| fs::create_dir(path))?;
        Ok(Self { target: target.into(), path, is_finished: false })
    }

    /// Where it lies until then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), FormatError> {
        write_file(&self.path.join(name), content)
    }

    /// Puts it under its name.
    pub fn finish(mut self) -> Result<(), FormatError> {
        replace(&self.path, &self.target)?;
        self.is_finished = true;
        Ok(())
    }
}

/// Errors where a folder of this name would have to be emptied first.
pub fn refuse_replacing(target: &Path) -> Result<(), FormatError> {
    let is_free = match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    if is_free { Ok(()) } else { Err(FormatError::OutputExists { path: target.into() }) }
}

/// Gives a file or folder the name `target`, which a file or an empty folder may have.
pub fn replace(path: &Path, target: &Path) -> Result<(), FormatError> {
    if path.is_dir() && target.exists() {
        // Not every system renames over it.
        fs::remove_dir(target).map_err(|source| FormatError::Io {
            path: target.to_owned(),
            action: "replace",
            source,
        })?;
    }
    rename_synced(path, target)
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nobody is left to tell; a stale temporary folder harms nothing.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}
