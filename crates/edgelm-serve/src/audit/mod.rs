//! The audit log: one record per request, hash-chained, with signed checkpoints (`docs/audit.md` has the format).
//!
//! What is written is never changed: a line that a crash cut is closed and named by the next record, rotation renames files and
//! carries the chain on, and records that could not be written are counted in one that could. Whoever changes, cuts or
//! reorders lines afterwards breaks the chain; whoever computes it anew lacks the signatures of the checkpoints.

mod chain;
mod key;
mod log;
mod note;
mod record;
mod verify;
mod writer;

pub use chain::Place;
pub use key::{SigningKey, VerifyingKey};
pub use log::{Fsync, LogConfig};
pub use verify::{Finding, Report, VerifyOptions, verify};
pub use writer::{AuditConfig, OnFailure};

pub(crate) use record::{Entry, RequestRecord};
pub(crate) use writer::{Audit, AuditState};

use std::{io, path::PathBuf};

/// Why a log cannot be opened, written or read, or a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The system refuses.
    #[error("cannot {what} `{path}`")]
    Io {
        /// `open`, `write` …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A log that is there does not hold together, so nothing may be appended to it.
    #[error("audit log `{path}`, line {line}: {what}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Another process writes it.
    #[error("audit log `{path}` is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A key file that holds no Ed25519 key, or one that others may read.
    #[error("key `{path}`: {what}")]
    Key {
        /// The file or text.
        path: PathBuf,
        /// What is wrong; never quotes a private key.
        what: String,
    },
    /// A setting without meaning.
    #[error("audit log: {0}")]
    Setting(String),
    /// The system has no random numbers to give.
    #[error("no random numbers can be had")]
    Random,
}

impl AuditError {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
