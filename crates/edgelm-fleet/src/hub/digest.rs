//! Digests of files.

use super::{HubError, listing::Digest};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Hexadecimal digest of a file, of the kind that `like` is.
pub(super) async fn of_file(path: &Path, like: &Digest) -> Result<String, HubError> {
    match like {
        Digest::Sha256(_) => sha256_of_file(path).await,
        Digest::GitSha1(_) => {
            hash(path, |length| {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {length}\0"));
                hasher
            })
            .await
        }
    }
}

/// SHA-256 of a file.
pub(super) async fn sha256_of_file(path: &Path) -> Result<String, HubError> {
    hash(path, |_| Sha256::new()).await
}

/// SHA-256 of the lines `<digest>  <name>\n`, for (name, digest) pairs.
pub(super) fn sha256_of_list(files: &[(&str, String)]) -> String {
    let mut hasher = Sha256::new();
    for (name, digest) in files {
        hasher.update(format!("{digest}  {name}\n"));
    }
    hex(&hasher.finalize())
}

/// Reads on a blocking thread: a large file takes seconds.
async fn hash<H>(path: &Path, start: impl FnOnce(u64) -> H + Send + 'static) -> Result<String, HubError>
where
    H: sha2::Digest,
{
    let owned = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || -> io::Result<String> {
        let mut file = File::open(owned)?;
        let mut hasher = start(file.metadata()?.len());
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    })
    .await;
    hashed.map_err(io::Error::other).flatten().map_err(HubError::io(path))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
