//! A file that appears under its name only when it is complete and on disk.
//!
//! Write to a temporary sibling, fsync it, rename it, fsync the folder: a power cut at any line leaves the old file or
//! the new one.

use crate::FormatError;
use std::{
    fs::File,
    io::{BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Tensors arrive in large pieces, headers in small ones.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a whole file: it appears under its name only when it is complete and on disk.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let mut output = Output::create(path)?;
    output.write(bytes)?;
    output.finish()?;
    Ok(())
}

/// Makes something beside `target` by `create`, under a temporary name that nothing has yet; returns that name too.
pub fn create_sibling<T>(
    target: &Path,
    create: impl Fn(&Path) -> std::io::Result<T>,
) -> Result<(PathBuf, T), FormatError> {
    let io = |source| FormatError::Io { path: target.into(), action: "create", source };
    let name = target.file_name().ok_or_else(|| io(ErrorKind::InvalidInput.into()))?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut sibling = std::ffi::OsString::from(".");
        sibling.push(name);
        sibling.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = target.with_file_name(sibling);
        match create(&temporary) {
            Ok(created) => return Ok((temporary, created)),
            // Left behind by a killed process that had the same id.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error)),
        }
    }
}

/// Gives a file or folder its name, and waits until the name is on disk.
pub fn rename_synced(from: &Path, target: &Path) -> Result<(), FormatError> {
    let io = |action| move |source| FormatError::Io { path: target.into(), action, source };
    std::fs::rename(from, target).map_err(io("rename"))?;
    #[cfg(unix)]
    {
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("fsync of the folder"))?;
    }
    Ok(())
}

/// An output under construction; dropping it without `finish` removes the temporary file.
pub(crate) struct Output {
    target: PathBuf,
    temporary: Option<PathBuf>,
    file: BufWriter<File>,
    written: u64,
}

impl Output {
    /// Creates the temporary sibling of `target`.
    pub(crate) fn create(target: &Path) -> Result<Self, FormatError> {
        // Found now rather than by the rename after hours of work.
        if target.file_name().is_some() && target.is_dir() {
            let source = ErrorKind::IsADirectory.into();
            return Err(FormatError::Io { path: target.into(), action: "create", source });
        }
        let (temporary, file) = create_sibling(target, |path| File::create_new(path))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { target: target.into(), temporary: Some(temporary), file, written: 0 })
    }

    /// The name it will have.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file.write_all(bytes).map_err(|source| self.error("write", source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Flush, fsync, rename, fsync the folder; returns the file size.
    pub(crate) fn finish(mut self) -> Result<u64, FormatError> {
        self.file.flush().map_err(|source| self.error("write", source))?;
        self.file.get_ref().sync_all().map_err(|source| self.error("fsync", source))?;
        if let Some(temporary) = &self.temporary {
            rename_synced(temporary, &self.target)?;
        }
        self.temporary = None;
        Ok(self.written)
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> FormatError {
        FormatError::Io { path: self.target.clone(), action, source }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Nobody is left to tell; a stale temporary file harms nothing.
            drop(std::fs::remove_file(temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn replaces_at_the_end_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.write(b"new!").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(output.finish().unwrap(), 4);
        assert_eq!(std::fs::read(&path).unwrap(), b"new!");
        assert_eq!(entries(dir.path()), 1);
    }

    #[test]
    fn leaves_nothing_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::create(&dir.path().join("out")).unwrap();
        output.write(b"half").unwrap();
        drop(output);
        assert_eq!(entries(dir.path()), 0);
    }

    #[test]
    fn refuses_folders_and_missing_parents() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::create(dir.path()).is_err());
        assert!(Output::create(Path::new("/")).is_err());
        let error = Output::create(&dir.path().join("no/out")).err().unwrap();
        assert!(error.to_string().contains("no/out"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn disk_full_names_the_file() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output {
            target: "model.gguf".into(),
            temporary: None,
            file: BufWriter::with_capacity(16, full),
            written: 0,
        };
        let error = output.write(&[0; 64]).unwrap_err();
        assert!(error.to_string().contains("model.gguf"), "{error}");
        let FormatError::Io { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), ErrorKind::StorageFull);
    }
}
