//! Little-endian reading that cannot leave its bytes.

use crate::fault::{Fault, malformed};

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Bytes read so far; never more than there are.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    /// The next `count` bytes; `what` they are goes into the message.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Fault> {
        let rest = self.rest();
        let Some(taken) = rest.get(..count) else {
            return malformed!(
                "file ends at byte {} inside {what}, which needs {count} bytes from byte {}",
                self.bytes.len(),
                self.position
            );
        };
        self.position += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 number of things of which each takes at least `min_bytes` of what is left, so that a loop over the count
    /// is bounded by the file and the count fits `usize`.
    pub(super) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize, Fault> {
        let count = self.u64(what)?;
        let left = self.rest().len();
        match usize::try_from(count).ok().filter(|&count| count <= left / min_bytes) {
            Some(count) => Ok(count),
            None => malformed!("{what} is {count}, more than the {left} bytes left in the file can hold"),
        }
    }

    /// A length-prefixed string; must be UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, Fault> {
        let length = self.count(1, what)?;
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => malformed!("{what} is not UTF-8: {error}"),
        }
    }
}
