//! The key of what waits on the disk: 32 random bytes, as 64 hexadecimal digits in a file that only its owner may read.

use super::ForwardError;
use crate::encoding::{from_hex, hex};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
};

/// AES-256-GCM with random nonces (NIST SP 800-38D; for far less than 2^32 messages).
pub(super) struct Key(RandomizedNonceKey);

impl Key {
    /// Reads the file; makes it, and the key, where there is none.
    ///
    /// # Errors
    /// A file that others may read, or that holds no key; no random numbers.
    pub(super) fn read_or_create(path: &Path) -> Result<Self, ForwardError> {
        let io = |source| ForwardError::Io { path: path.into(), source };
        match fs::symlink_metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(io(error)),
        }
        let wrong = |what: &str| ForwardError::Key { path: path.into(), what: what.to_owned() };
        let meta = fs::metadata(path).map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            if meta.permissions().mode() & 0o077 != 0 {
                return Err(wrong("may be read by others than its owner; `chmod 600` it"));
            }
        }
        if meta.len() > 256 {
            return Err(wrong("is not a key: 64 hexadecimal digits"));
        }
        let text = fs::read_to_string(path).map_err(io)?;
        let bytes: [u8; 32] = from_hex(text.trim()).ok_or_else(|| wrong("is not a key: 64 hexadecimal digits"))?;
        RandomizedNonceKey::new(&AES_256_GCM, &bytes).map(Self).map_err(|_| wrong("is not a key"))
    }

    /// Nonce, ciphertext and tag. `about` is not in there, but bound to it.
    pub(super) fn seal(&self, about: &[u8], content: &[u8]) -> Result<Vec<u8>, ForwardError> {
        let mut sealed = content.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(about), &mut sealed).map_err(|_| ForwardError::Random)?;
        Ok([&nonce.as_ref()[..], &sealed].concat())
    }

    /// What was sealed with the same `about`; `None` where a bit of it is another.
    pub(super) fn open(&self, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let mut content = rest.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = self.0.open_in_place(nonce, Aad::from(about), &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }
}

fn create(path: &Path) -> Result<(), ForwardError> {
    let io = |source| ForwardError::Io { path: path.into(), source };
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| ForwardError::Random)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(io)?;
    file.write_all(format!("{}\n", hex(&bytes)).as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}
