//! Checkpoints as signed notes (C2SP signed-note): a few lines of text, a blank line, a signature line. Other tools can check them,
//! and they can be kept away from the machine that writes the log.

use super::{
    chain::Place,
    key::{SigningKey, VerifyingKey},
};
use crate::encoding::{base64, from_base64};
use sha2::{Digest, Sha256};

/// In front of a log's id, as the note's origin and its key's name.
const ORIGIN: &str = "edgelm-audit/";
/// The signature type of Ed25519 in key ids.
const ED25519: u8 = 1;

/// What is signed: whose chain, how long, its head, and when.
pub(super) fn text(log: &str, place: Place, time: &str) -> String {
    format!("{ORIGIN}{log}\n{}\n{}\ntime {time}\n", place.records, base64(&place.head))
}

/// The whole note.
pub(super) fn signed(text: &str, log: &str, key: &SigningKey) -> String {
    let mut tagged = key_id(log, &key.verifying_key()).to_vec();
    tagged.extend(key.sign(text.as_bytes()));
    format!("{text}\n\u{2014} {ORIGIN}{log} {}\n", base64(&tagged))
}

/// The first four bytes of SHA-256 of name, line end, type and key.
fn key_id(log: &str, key: &VerifyingKey) -> [u8; 4] {
    let mut hasher = Sha256::new();
    hasher.update(format!("{ORIGIN}{log}\n"));
    hasher.update([ED25519]);
    hasher.update(key.0);
    let digest: [u8; 32] = hasher.finalize().into();
    let [a, b, c, d, ..] = digest;
    [a, b, c, d]
}

/// Reads a note that `key` has signed: the log's id and how far it was.
pub(super) fn open(note: &str, key: &VerifyingKey) -> Result<(String, Place), &'static str> {
    const FORM: &str = "not a signed checkpoint";
    let (text, signatures) = note.split_once("\n\n").ok_or(FORM)?;
    let text = format!("{text}\n");
    let mut lines = text.lines();
    let log = lines.next().and_then(|line| line.strip_prefix(ORIGIN)).ok_or(FORM)?;
    let records = lines.next().and_then(|line| line.parse().ok()).ok_or(FORM)?;
    let head = lines.next().and_then(from_base64).and_then(|hash| hash.try_into().ok()).ok_or(FORM)?;
    let prefix = format!("\u{2014} {ORIGIN}{log} ");
    let is_signed = signatures.lines().filter_map(|line| from_base64(line.strip_prefix(&prefix)?)).any(|tagged| {
        tagged
            .split_at_checked(4)
            .is_some_and(|(id, signature)| id == key_id(log, key) && key.verifies(text.as_bytes(), signature))
    });
    if is_signed { Ok((log.to_owned(), Place { records, head })) } else { Err("not signed by a key that is trusted") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, _) = SigningKey::create(&folder.path().join("key")).expect("a key");
        let (other, _) = SigningKey::create(&folder.path().join("other")).expect("a key");
        let place = Place { records: 9, head: [3; 32] };
        let note = signed(&text("ab", place, "now"), "ab", &key);
        assert_eq!(open(&note, &key.verifying_key()), Ok(("ab".to_owned(), place)));
        assert!(open(&note, &other.verifying_key()).is_err());
        assert!(open(&note.replacen("\n9\n", "\n8\n", 1), &key.verifying_key()).is_err());
        assert!(open("", &key.verifying_key()).is_err());
    }
}
