//! One API key as it is kept: a salted hash, from which nobody gets the key back.
//!
//! A key is 256 random bits, so one round of SHA-256 is enough: what slows down guessing passwords has nothing to slow
//! down here. The salt keeps equal keys in two files from being told to be equal.

use super::Scope;
use crate::{
    ServeError,
    encoding::{from_hex, hex},
};
use rustls::crypto::aws_lc_rs;
use sha2::{Digest, Sha256};
use std::{hint::black_box, sync::Arc};

const ALGORITHM: &str = "sha256";
/// In front of every key, so that scanners of leaked secrets and people know what it is.
const PREFIX: &str = "elm_";
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const MAX_NAME: usize = 64;

/// A key that was just made. The only moment at which the key itself exists here.
#[must_use]
pub struct NewKey {
    /// What its holder sends.
    pub key: String,
    /// What stands for it in a key file.
    pub line: String,
}

impl NewKey {
    /// Makes a key. `name` says whose it is, in logs and lists.
    ///
    /// # Errors
    /// A name that a key file cannot hold; a system without random numbers.
    pub fn random(name: &str, scope: Scope) -> Result<Self, ServeError> {
        check_name(name).map_err(ServeError::KeyName)?;
        let (mut secret, mut salt) = ([0; 32], [0; SALT_BYTES]);
        let source = aws_lc_rs::default_provider().secure_random;
        for bytes in [&mut secret[..], &mut salt[..]] {
            source.fill(bytes).map_err(|_| ServeError::Random)?;
        }
        let key = format!("{PREFIX}{}", hex(&secret));
        let line = format!("{name}:{scope}:{ALGORITHM}:{}:{}", hex(&salt), hex(&digest(&salt, key.as_bytes())));
        Ok(Self { key, line })
    }
}

/// A key as a file holds it.
#[derive(Clone)]
pub(crate) struct StoredKey {
    pub(crate) name: Arc<str>,
    pub(crate) scope: Scope,
    salt: [u8; SALT_BYTES],
    hash: [u8; HASH_BYTES],
}

impl StoredKey {
    /// A line of a key file: `name:scope:sha256:salt:hash`, or the key itself. Errors never quote a key.
    pub(crate) fn parse(line: &str, number: usize) -> Result<Self, String> {
        if !line.contains(':') {
            return Self::plain(line, number);
        }
        let parts: Vec<&str> = line.split(':').collect();
        let [name, scope, algorithm, salt, hash] = parts[..] else {
            return Err("is not `name:scope:sha256:salt:hash`; a key itself must not hold a `:`".to_owned());
        };
        check_name(name)?;
        let scope = scope.parse().map_err(|what| format!("scope {what}"))?;
        if algorithm != ALGORITHM {
            return Err(format!("the only kind of hash is `{ALGORITHM}`"));
        }
        let salt = from_hex(&salt.to_ascii_lowercase())
            .ok_or_else(|| format!("the salt is not {SALT_BYTES} bytes in hexadecimal"))?;
        let hash = from_hex(&hash.to_ascii_lowercase())
            .ok_or_else(|| format!("the hash is not {HASH_BYTES} bytes in hexadecimal"))?;
        Ok(Self { name: name.into(), scope, salt, hash })
    }

    /// The key itself. It opens everything, as such files have always done.
    pub(super) fn plain(key: &str, number: usize) -> Result<Self, String> {
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("is not one word of printable ASCII".to_owned());
        }
        let salt = [0; SALT_BYTES];
        let name = format!("line-{number}").into();
        Ok(Self { name, scope: Scope::Admin, salt, hash: digest(&salt, key.as_bytes()) })
    }

    /// Takes the same time wherever the hashes differ.
    pub(crate) fn is(&self, candidate: &[u8]) -> bool {
        let hash = digest(&self.salt, candidate);
        black_box(hash.iter().zip(&self.hash).fold(0u8, |seen, (a, b)| black_box(seen | (a ^ b)))) == 0
    }

    /// Tells keys from each other, also after their file has been read again. Nothing secret.
    pub(crate) fn id(&self) -> u64 {
        self.hash.iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
    }
}

/// What stands in front of a colon, and in logs.
fn check_name(name: &str) -> Result<(), String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_word) {
        return Err(format!("a key's name is 1 to {MAX_NAME} letters, digits, `-`, `_`, `.` or `@`"));
    }
    Ok(())
}

fn digest(salt: &[u8], key: &[u8]) -> [u8; HASH_BYTES] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_its_line_and_no_other() {
        let new = NewKey::random("ci", Scope::Use).expect("random numbers");
        let stored = StoredKey::parse(&new.line, 1).expect("its own line");
        assert_eq!((&*stored.name, stored.scope), ("ci", Scope::Use));
        assert!(stored.is(new.key.as_bytes()) && new.key.len() == 4 + 64);
        assert!(!new.line.contains(&new.key[4..]));
        let other = NewKey::random("ci", Scope::Use).expect("random numbers");
        assert!(other.key != new.key && !stored.is(other.key.as_bytes()));
        for wrong in [&b""[..], &new.key.as_bytes()[..67], format!("{}0", new.key).as_bytes()] {
            assert!(!stored.is(wrong));
        }
        assert!(NewKey::random("a:b", Scope::Use).is_err() && NewKey::random("", Scope::Use).is_err());
    }

    #[test]
    fn a_hash_of_known_bytes() {
        // python3: hashlib.sha256(bytes(range(16)) + b"elm_test").hexdigest()
        let line = "known:admin:sha256:000102030405060708090a0b0c0d0e0f:\
                    62b5be70320d05abecbde13e1314e3706df2d852b4e517c0da827e96c0c88316";
        let stored = StoredKey::parse(line, 1).expect("valid");
        assert!(stored.is(b"elm_test") && !stored.is(b"elm_tesT"));
    }

    #[test]
    fn lines_that_are_wrong_say_how() {
        let (salt, hash) = ("0".repeat(32), "0".repeat(64));
        for (line, part) in [
            (format!("a:root:sha256:{salt}:{hash}"), "scope"),
            (format!("a:use:md5:{salt}:{hash}"), "`sha256`"),
            (format!("a:use:sha256:{}:{hash}", &salt[1..]), "salt"),
            (format!("a:use:sha256:{salt}:{}g", &hash[1..]), "hash"),
            (format!("a b:use:sha256:{salt}:{hash}"), "name"),
            ("a:use".to_owned(), "`:`"),
            ("two words".to_owned(), "one word"),
        ] {
            let what = StoredKey::parse(&line, 1).err().expect("refused");
            assert!(what.contains(part) && !what.contains("root"), "{what}");
        }
        assert!(StoredKey::parse(&format!("a:use:sha256:{salt}:{hash}"), 1).is_ok());
    }
}
