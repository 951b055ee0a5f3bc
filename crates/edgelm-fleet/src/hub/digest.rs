//! Digests of downloaded files, of the kind that the hub says.

use super::{HubError, listing::Digest};
use crate::digest;
use sha1::{Digest as _, Sha1};
use std::{io, path::Path};

/// Hexadecimal digest of a file, of the kind that `like` is.
pub(super) async fn of_file(path: &Path, like: &Digest) -> Result<String, HubError> {
    match like {
        Digest::Sha256(_) => sha256_of_file(path).await,
        Digest::GitSha1(_) => {
            let start = |length: u64| Sha1::new().chain_update(format!("blob {length}\0"));
            on_thread(path, move |path| digest::of_file(path, start)).await
        }
    }
}

/// SHA-256 of a file.
pub(super) async fn sha256_of_file(path: &Path) -> Result<String, HubError> {
    on_thread(path, digest::sha256_of_file).await
}

/// Reads on a blocking thread: a large file takes seconds.
async fn on_thread(
    path: &Path,
    hash: impl FnOnce(&Path) -> io::Result<String> + Send + 'static,
) -> Result<String, HubError> {
    let owned = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || hash(&owned)).await;
    hashed.map_err(io::Error::other).flatten().map_err(HubError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn known_digests() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        std::fs::write(&path, "hello\n").expect("written");
        // `git hash-object` and `sha256sum` of the same content.
        let git = of_file(&path, &Digest::GitSha1(String::new())).await.expect("hashed");
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = sha256_of_file(&path).await.expect("hashed");
        assert_eq!(sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert!(sha256_of_file(&folder.path().join("none")).await.is_err());
    }
}
