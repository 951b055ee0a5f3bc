//! Ed25519 keys (RFC 8032) in the files that OpenSSL writes too: PKCS#8 and SubjectPublicKeyInfo in PEM (RFC 8410).

use super::AuditError;
use crate::encoding::{base64, from_base64, from_hex, hex};
use aws_lc_rs::{
    rand,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

/// In front of the 32 bytes of a private key: version 0, algorithm 1.3.101.112, an octet string in an octet string.
const PRIVATE_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// In front of the 32 bytes of a public key.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
const PRIVATE_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";
/// In front of a public key written as one word.
const WORD: &str = "ed25519:";
/// No key file is larger.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// A private key. Never printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key())
    }
}

impl SigningKey {
    fn from_seed(seed: &[u8; 32]) -> Result<Self, &'static str> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| "not an Ed25519 key")?;
        Ok(Self { pair })
    }

    /// Makes a key and writes it to `path`, readable by its owner alone, and its public half to `path` with `.pub`
    /// appended. Neither file may exist.
    ///
    /// # Errors
    /// Files that exist or cannot be written; no random numbers.
    pub fn create(path: &Path) -> Result<(Self, PathBuf), AuditError> {
        let mut seed = [0; 32];
        rand::fill(&mut seed).map_err(|_| AuditError::Random)?;
        let key = Self::from_seed(&seed).map_err(|_| AuditError::Random)?;
        let mut public_path = path.as_os_str().to_owned();
        public_path.push(".pub");
        let public_path = PathBuf::from(public_path);
        if public_path.exists() {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(AuditError::io("create", public_path)(source));
        }
        let private = [&PRIVATE_PREFIX[..], &seed].concat();
        write_new(path, &pem(PRIVATE_LABEL, &private), true)?;
        write_new(&public_path, &key.verifying_key().pem(), false)?;
        Ok((key, public_path))
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// A file that cannot be read, that others than its owner and group may read or change, or that holds no such key.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        let text = read_small(path)?;
        let wrong = |what: &str| AuditError::Key { path: path.into(), what: what.to_owned() };
        refuse_open_to_all(path).map_err(|what| wrong(&what))?;
        let bytes = from_pem(PRIVATE_LABEL, &text).ok_or_else(|| wrong("not a private key in PEM"))?;
        let seed =
            bytes.strip_prefix(&PRIVATE_PREFIX).and_then(|seed| seed.first_chunk::<32>().filter(|_| seed.len() == 32));
        Self::from_seed(seed.ok_or_else(|| wrong("not an Ed25519 key in PKCS#8"))?).map_err(wrong)
    }

    /// Its public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        // Always 32 bytes (RFC 8032); were they not, no signature would verify.
        let public = self.pair.public_key().as_ref();
        bytes.iter_mut().zip(public).for_each(|(to, from)| *to = *from);
        VerifyingKey(bytes)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// A public key. As text: `ed25519:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(pub(super) [u8; 32]);

impl VerifyingKey {
    /// Reads a public key from a file, in PEM or as one word; a private key's file will do too.
    ///
    /// # Errors
    /// A file that cannot be read or holds no such key.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        let text = read_small(path)?;
        if text.contains(PRIVATE_LABEL) {
            return Ok(SigningKey::read(path)?.verifying_key());
        }
        let from_text = || -> Option<Self> {
            match from_pem(PUBLIC_LABEL, &text) {
                Some(bytes) => Some(Self(bytes.strip_prefix(&PUBLIC_PREFIX)?.try_into().ok()?)),
                None => text.trim().parse().ok(),
            }
        };
        let what = || "holds no Ed25519 key".to_owned();
        from_text().ok_or_else(|| AuditError::Key { path: path.into(), what: what() })
    }

    /// In PEM.
    pub fn pem(&self) -> String {
        pem(PUBLIC_LABEL, &[&PUBLIC_PREFIX[..], &self.0].concat())
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD}{}", hex(&self.0))
    }
}

impl FromStr for VerifyingKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = text.strip_prefix(WORD).and_then(from_hex).map(Self);
        key.ok_or_else(|| format!("`{text}` is not `{WORD}` with 64 hexadecimal digits"))
    }
}

fn pem(label: &str, bytes: &[u8]) -> String {
    let body = base64(bytes);
    let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn from_pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    from_base64(&body.split_whitespace().collect::<String>())
}

fn read_small(path: &Path) -> Result<String, AuditError> {
    let bytes = fs::metadata(path).map_err(AuditError::io("read", path))?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(AuditError::Key { path: path.into(), what: format!("{bytes} bytes are too many for a key") });
    }
    fs::read_to_string(path).map_err(AuditError::io("read", path))
}

#[cfg(unix)]
fn refuse_open_to_all(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    // Group rights are left to the operator: systemd and Kubernetes hand credentials over that way.
    if mode & 0o007 != 0 { Err(format!("mode {:03o} lets everybody at a private key", mode & 0o777)) } else { Ok(()) }
}

#[cfg(not(unix))]
fn refuse_open_to_all(_: &Path) -> Result<(), String> {
    Ok(())
}

fn write_new(path: &Path, text: &str, is_private: bool) -> Result<(), AuditError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if is_private { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = is_private;
    let write = || -> io::Result<()> {
        let mut file = options.open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(AuditError::io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3 and 10.1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn write(path: &Path, text: &str) {
        write_new(path, text, true).expect("written");
    }

    #[test]
    fn keys_of_the_specification() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        write(&path, PRIVATE);
        let key = SigningKey::read(&path).expect("a key").verifying_key();
        assert_eq!(key.pem(), PUBLIC);
        assert_eq!(key.to_string().parse(), Ok(key));
        let public = folder.path().join("public");
        write(&public, PUBLIC);
        assert_eq!(VerifyingKey::read(&public).expect("a key"), key);
        assert_eq!(VerifyingKey::read(&path).expect("a key"), key);
    }

    #[test]
    fn new_keys_are_private_and_sign() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let (key, public) = SigningKey::create(&path).expect("a key");
        let verifying = VerifyingKey::read(&public).expect("its public half");
        assert_eq!(SigningKey::read(&path).expect("read back").verifying_key(), verifying);
        let signature = key.sign(b"words");
        assert!(verifying.verifies(b"words", &signature) && !verifying.verifies(b"word", &signature));
        assert!(matches!(SigningKey::create(&path), Err(AuditError::Io { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
            assert!(matches!(SigningKey::read(&path), Err(AuditError::Key { .. })));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("empty", ""), ("short", &PRIVATE.replace("MC4C", "MC4")), ("public", PUBLIC)] {
            let path = folder.path().join(name);
            write(&path, text);
            assert!(matches!(SigningKey::read(&path), Err(AuditError::Key { .. })), "{name}");
        }
    }
}
