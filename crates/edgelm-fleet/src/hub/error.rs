//! Why a pull fails. No message holds a token, nor a redirect's address (those carry signatures).

use std::{io, path::PathBuf};

/// Why a pull fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The reference cannot be read.
    #[error("`{text}` is not a hub reference: {what}")]
    Reference {
        /// As given.
        text: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An environment variable cannot be used.
    #[error("`{variable}`: {what}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What is wrong; never quotes a token.
        what: String,
    },
    /// Offline, and not in the cache.
    #[error("offline, and {what} is not in the cache `{cache}`")]
    NotCached {
        /// Repository, revision or file.
        what: String,
        /// The repository's folder there.
        cache: PathBuf,
    },
    /// 401 or 403.
    #[error("`{repo}`: access denied (HTTP {status})")]
    Denied {
        /// `org/name`.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// 404: no such repository, revision or file.
    #[error("`{url}` does not exist")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// Any other answer that is not a success.
    #[error("`{url}` answered HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: u16,
    },
    /// No answer, or one that broke off.
    #[error("`{url}` cannot be reached")]
    Network {
        /// What was asked for.
        url: String,
        /// Its address is removed.
        source: reqwest::Error,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The connection ended cleanly, but too early.
    #[error("`{url}` ended after {got} of {want} bytes")]
    Truncated {
        /// What was asked for.
        url: String,
        /// Bytes there are.
        got: u64,
        /// Bytes expected.
        want: u64,
    },
    /// The server would not stop asking for patience.
    #[error("gave up after {attempts} attempts")]
    GaveUp {
        /// How many.
        attempts: u32,
        /// The last failure.
        source: Box<HubError>,
    },
    /// The API's answer is not what it should be.
    #[error("`{url}`: {what}")]
    Listing {
        /// What was asked for.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// A file name that must not touch a path.
    #[error("the hub names a file {name:?}, which is not a safe relative path")]
    UnsafeName {
        /// As sent.
        name: String,
    },
    /// Nothing, or more than one thing, is what was asked for.
    #[error("{what}; `{repo}` has: {}", .available.join(", "))]
    Selection {
        /// `org/name`.
        repo: String,
        /// What is wrong.
        what: String,
        /// Names to choose from.
        available: Vec<String>,
    },
    /// A file of another size than the listing says.
    #[error("`{file}`: the server sends {got} bytes, the listing says {want}")]
    Size {
        /// Its name.
        file: String,
        /// As sent; at least.
        got: u64,
        /// As listed.
        want: u64,
    },
    /// A file with other content than the listing says.
    #[error("`{file}`: the digest is {got}, the listing says {want}")]
    Digest {
        /// Its name.
        file: String,
        /// Of what came.
        got: String,
        /// As listed.
        want: String,
    },
    /// No room for a file.
    #[error("no space left for `{path}`")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The file system.
    #[error("cannot access `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl HubError {
    /// The next step, where it is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Denied { with_token: false, .. } => {
                Some("set HF_TOKEN if the repository is private or gated; otherwise check its name")
            }
            Self::Denied { with_token: true, .. } => {
                Some("the token in HF_TOKEN has no access; accept the model's terms on its page, or use another token")
            }
            Self::NotFound { .. } => Some("check the spelling of the repository, the revision and the file"),
            Self::NotCached { .. } => {
                Some("unset HF_HUB_OFFLINE and EDGELM_OFFLINE, or pull it on a machine with a network")
            }
            Self::Network { .. } | Self::Truncated { .. } | Self::GaveUp { .. } => {
                Some("run the command again: it continues where it stopped")
            }
            Self::DiskFull { .. } => Some("free some space, or let EDGELM_CACHE name a folder on another disk"),
            Self::Selection { .. } => Some("name one of them: hf.co/org/name:FILE"),
            _ => None,
        }
    }

    /// For `map_err`: the error of a file system call on `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::Io { path, source },
        }
    }
}
