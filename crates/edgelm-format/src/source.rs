//! Where the bytes of a model come from: a mapped file or the binary itself.
//!
//! The one thing a reader would get wrong: a mapped file must not be truncated or rewritten in place while it is open
//! (the kernel answers a read past the new end with SIGBUS). Everything in this workspace replaces files by rename,
//! which leaves an open mapping on the old bytes.

// The memory map is the only unsafe code of this crate.
#![allow(unsafe_code)]

use crate::FormatError;
use std::{
    fs::{File, Metadata},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Immutable bytes with a name for error messages. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<memmap2::Mmap>),
    Static(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl Source {
    /// Maps a file read-only. Errors on what is missing, empty, a directory or not a regular file.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let io = |action| move |source| FormatError::Io { path: path.into(), action, source };
        // Looked at before opening too: opening a pipe would wait for its writer.
        check_regular(path, &std::fs::metadata(path).map_err(io("open"))?)?;
        let file = File::open(path).map_err(io("open"))?;
        check_regular(path, &file.metadata().map_err(io("open"))?)?;
        // SAFETY: the mapping is read-only and lives as long as every slice of it (`bytes` borrows `self`). That the
        // file is not changed underneath is the documented condition of this module; no writer of this workspace
        // changes a file in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Self { path: path.into(), bytes: Bytes::Mapped(Arc::new(map)) })
    }
    /// Bytes compiled into the program.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: name.into(), bytes: Bytes::Static(bytes) }
    }
    /// Bytes made at run time (tests, fuzzing).
    pub fn owned(name: &str, bytes: Vec<u8>) -> Self {
        Self { path: name.into(), bytes: Bytes::Owned(bytes.into()) }
    }
    /// Name for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(m) => m,
            Bytes::Static(b) => b,
            Bytes::Owned(b) => b,
        }
    }
    /// Tells the kernel that these bytes (a subslice of `self.bytes()`) are not needed again soon, so that their
    /// pages stop counting as this process's memory. Whole pages are dropped, also those shared with a neighbour: they
    /// come back from the file when touched. No effect on embedded or owned bytes, on slices of something else, or on
    /// systems without `madvise`.
    pub fn release(&self, part: &[u8]) {
        let Bytes::Mapped(map) = &self.bytes else { return };
        let Some(offset) = part.as_ptr().addr().checked_sub(map.as_ptr().addr()) else { return };
        if offset.checked_add(part.len()).is_none_or(|end| end > map.len()) || part.is_empty() {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the range was just checked to lie in this mapping. It is a shared, read-only file mapping, so
            // dropped pages are read back from the file with the same content; borrowed slices stay valid.
            let dropped = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
            // A refused hint costs memory and changes no result.
            drop(dropped);
        }
    }
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), FormatError> {
    let unsupported = |what: &str| Err(FormatError::Unsupported { path: path.into(), what: what.into() });
    if metadata.is_dir() {
        unsupported("is a directory, expected a file")
    } else if !metadata.is_file() {
        unsupported("is not a regular file")
    } else if metadata.len() == 0 {
        Err(FormatError::Malformed { path: path.into(), what: "the file is empty".into() })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn refuses_what_cannot_be_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| Source::open(path).map(|_| ()).unwrap_err().to_string();
        assert!(message(dir.path()).contains("directory"));
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert!(message(&empty).contains("empty"));
        assert!(message(&dir.path().join("missing")).contains("missing"));
        #[cfg(target_os = "linux")]
        assert!(message(Path::new("/dev/zero")).contains("regular"));
    }

    #[test]
    fn release_keeps_the_content_and_ignores_foreign_slices() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let source = Source::open(&path).unwrap();
        assert_eq!(source.bytes(), content);
        source.release(&source.bytes()[5_000..90_001]);
        source.release(&source.bytes()[content.len()..]);
        source.release(&content);
        source.release(&[]);
        assert_eq!(source.bytes(), content);
        Source::owned("owned", content.clone()).release(&content);
    }

    /// Resident file pages of this process, from the kernel.
    #[cfg(target_os = "linux")]
    fn resident_file_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn release_lowers_resident_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1_u8; 32 << 20]).unwrap();
        let source = Source::open(&path).unwrap();
        let sum: usize = source.bytes().iter().step_by(4096).map(|&b| usize::from(b)).sum();
        assert_eq!(sum, 8192);
        let before = resident_file_kib();
        source.release(source.bytes());
        let after = resident_file_kib();
        assert!(after + 24 * 1024 < before, "{before} KiB before, {after} KiB after");
    }
}
