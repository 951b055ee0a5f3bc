//! Where the bytes of a model come from: a mapped file or the binary itself.

use crate::FormatError;
use std::{
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
    /// Maps a file read-only.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let _ = path;
        todo!()
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
    /// pages stop counting as this process's memory. No effect on embedded or owned bytes.
    pub fn release(&self, part: &[u8]) {
        let _ = part;
    }
}
