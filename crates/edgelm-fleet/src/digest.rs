//! Digests of files and of lists of files, in hexadecimal.

use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file.
///
/// # Errors
/// It cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    of_file(path, |_| Sha256::new())
}

/// SHA-256 of the lines `<digest>  <name>\n`, for (name, digest) pairs: what stands for several files.
pub fn sha256_of_list<N: AsRef<str>>(files: &[(N, String)]) -> String {
    let mut hasher = Sha256::new();
    for (name, digest) in files {
        hasher.update(format!("{digest}  {}\n", name.as_ref()));
    }
    hex(&hasher.finalize())
}

/// Of a file, by a hasher that may want to know its length first.
pub(crate) fn of_file<H: Digest>(path: &Path, start: impl FnOnce(u64) -> H) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = start(file.metadata()?.len());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
