//! Lines and how they hang together.
//!
//! A line is a JSON object in one line of text that ends with the SHA-256 of all that stands before it in the line:
//! `{"seq":7,"time":"…","prev":"<hash of line 6>",…,"hash":"<of the bytes before ,"hash">"}`. So the bytes themselves are what
//! is hashed, and no canonical form of JSON is needed: `prev` is among them, which makes the chain.

use super::record::Entry;
use crate::{
    encoding::{from_hex, hex},
    time::{Fraction, rfc3339},
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, time::SystemTime};

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// What the first record names as its predecessor.
const NOTHING: Hash = [0; 32];

const BEFORE_HASH: &str = ",\"hash\":\"";
const AFTER_HASH: &str = "\"}";
const HASH_DIGITS: usize = 64;

/// Longer lines are not ours: a bound on what a verifier holds. Contents of requests are bounded by the body limit.
pub(super) const MAX_LINE_BYTES: usize = 256 << 20;

/// A place in the chain: so many records, and the hash of the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Records up to here, which is also the next one's `seq`.
    pub records: u64,
    /// Hash of the last of them; zeros where there is none.
    pub head: Hash,
}

impl Place {
    /// In front of the first record.
    pub(super) const START: Self = Self { records: 0, head: NOTHING };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.records, hex(&self.head))
    }
}

/// `RECORDS:HASH`.
impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let place = parts.and_then(|(n, hash)| Some(Self { records: n.parse().ok()?, head: from_hex(hash)? }));
        place.ok_or_else(|| "must be a number of records and a hash in hexadecimal: RECORDS:HASH".to_owned())
    }
}

#[derive(Serialize)]
struct Body<'a> {
    seq: u64,
    time: String,
    prev: String,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// The line of the record behind `place`, with its line end, and the place behind it.
pub(super) fn line(place: Place, time: SystemTime, entry: &Entry) -> Result<(String, Place), serde_json::Error> {
    let body = Body { seq: place.records, time: rfc3339(time, Fraction::Millis), prev: hex(&place.head), entry };
    let mut text = serde_json::to_string(&body)?;
    // Its own bracket comes last.
    text.pop();
    let head = sha256(text.as_bytes());
    text.push_str(BEFORE_HASH);
    text.push_str(&hex(&head));
    text.push_str(AFTER_HASH);
    text.push('\n');
    Ok((text, Place { records: place.records + 1, head }))
}

pub(super) fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// A line that is whole: its hash is that of its bytes.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) seq: u64,
    pub(super) prev: Hash,
    pub(super) hash: Hash,
    pub(super) fields: Value,
}

impl Line {
    /// Reads a line without its end; the error says what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "not text")?;
        let rest = text.strip_suffix(AFTER_HASH).ok_or("not a whole record")?;
        let (rest, digits) = rest.split_at_checked(rest.len().wrapping_sub(HASH_DIGITS)).ok_or("not a whole record")?;
        let hash = from_hex(digits).ok_or("not a whole record")?;
        let body = rest.strip_suffix(BEFORE_HASH).ok_or("not a whole record")?;
        if sha256(body.as_bytes()) != hash {
            return Err("its hash is not that of its content");
        }
        let fields: Value = serde_json::from_str(text).map_err(|_| "not JSON")?;
        let seq = fields["seq"].as_u64().ok_or("without a `seq`")?;
        let prev = fields["prev"].as_str().and_then(from_hex).ok_or("without a `prev`")?;
        Ok(Self { seq, prev, hash, fields })
    }

    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.fields[field].as_str()
    }

    pub(super) fn kind(&self) -> &str {
        self.text("kind").unwrap_or_default()
    }

    /// The place behind it.
    pub(super) fn place(&self) -> Place {
        Place { records: self.seq.saturating_add(1), head: self.hash }
    }

    /// Whether it comes next.
    pub(super) fn follows(&self, place: Place) -> Result<(), String> {
        if self.seq != place.records {
            return Err(format!("record {} where {} was to come", self.seq, place.records));
        }
        if self.prev != place.head {
            return Err(format!("record {} does not follow the one before it", self.seq));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let entry = Entry::Lost { records: 3 };
        let (text, place) = line(Place::START, SystemTime::UNIX_EPOCH, &entry).expect("a line");
        let bytes = text.trim_end().as_bytes();
        let read = Line::parse(bytes).expect("whole");
        assert_eq!((read.seq, read.kind(), read.place()), (0, "lost", place));
        assert!(read.follows(Place::START).is_ok() && read.follows(place).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(Line::parse(&changed).is_err(), "byte {at}");
            assert!(Line::parse(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn places_are_read_back() {
        let place = Place { records: 12, head: [7; 32] };
        assert_eq!(place.to_string().parse(), Ok(place));
        for bad in ["", "12", "12:", "x:00", ":00"] {
            assert!(bad.parse::<Place>().is_err());
        }
    }
}
