//! A folder that appears when it is complete.

use crate::CompressError;
use edgelm_format::FormatError;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// A folder under a temporary name beside the one that it will have.
pub(crate) struct Staged {
    target: PathBuf,
    path: PathBuf,
    is_finished: bool,
}

impl Staged {
    /// Errors where something is in the way that would be lost.
    pub fn create(target: &Path) -> Result<Self, CompressError> {
        let io = |source| FormatError::Io { path: target.into(), action: "create", source };
        let name = target.file_name().ok_or_else(|| io(ErrorKind::InvalidInput.into()))?;
        let is_free = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if !is_free {
            return Err(CompressError::OutputExists { path: target.into() });
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut sibling = std::ffi::OsString::from(".");
            sibling.push(name);
            sibling.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let path = target.with_file_name(sibling);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { target: target.into(), path, is_finished: false }),
                // Left behind by a killed process that had the same id.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io(error).into()),
            }
        }
    }

    /// Where it lies until then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), CompressError> {
        let path = self.path.join(name);
        let io = |action| {
            let path = path.clone();
            move |source| FormatError::Io { path, action, source }
        };
        fs::write(&path, content).map_err(io("write"))?;
        fs::File::open(&path).and_then(|file| file.sync_all()).map_err(io("fsync"))?;
        Ok(())
    }

    /// Puts it under its name.
    pub fn finish(mut self) -> Result<(), CompressError> {
        let target = self.target.clone();
        let io = |action| {
            let path = target.clone();
            move |source| FormatError::Io { path, action, source }
        };
        if self.target.exists() {
            // An empty one; not every system renames over it.
            fs::remove_dir(&self.target).map_err(io("replace"))?;
        }
        fs::rename(&self.path, &self.target).map_err(io("rename"))?;
        self.is_finished = true;
        #[cfg(unix)]
        {
            let parent = match self.target.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(io("fsync of the folder"))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nobody is left to tell; a stale temporary folder harms nothing.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}
