//! A broken rule before the file it was found in is known, and names from files made safe to print.

use crate::FormatError;
use std::{fmt, path::Path};

/// Becomes a [`FormatError`] once `at` names the file. Parsers work on plain bytes and return this.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes break the format's rules.
    Malformed(String),
    /// Well-formed, but not for this program.
    Unsupported(String),
}

impl Fault {
    /// Names the file.
    pub(crate) fn at(self, path: &Path) -> FormatError {
        match self {
            Self::Malformed(what) => FormatError::Malformed { path: path.into(), what },
            Self::Unsupported(what) => FormatError::Unsupported { path: path.into(), what },
        }
    }

    /// Puts the key or tensor in front of the message.
    pub(crate) fn within(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Malformed(what) => Self::Malformed(format!("{place}: {what}")),
            Self::Unsupported(what) => Self::Unsupported(format!("{place}: {what}")),
        }
    }
}

/// `Err(Fault::Malformed(format!(…)))`.
macro_rules! malformed {
    ($($arg:tt)*) => { Err($crate::fault::Fault::Malformed(format!($($arg)*))) };
}
pub(crate) use malformed;

/// A name out of a file, in backticks: control characters escaped and cut to a length that fits a line, because the
/// file's author chose it.
pub(crate) struct Name<'a>(pub(crate) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_CHARS: usize = 120;
        f.write_str("`")?;
        match self.0.char_indices().nth(SHOWN_CHARS) {
            None => write!(f, "{}", self.0.escape_debug())?,
            Some((end, _)) => write!(f, "{}…", self.0.get(..end).unwrap_or_default().escape_debug())?,
        }
        f.write_str("`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_one_short_line() {
        assert_eq!(Name("blk.0.attn_q.weight").to_string(), "`blk.0.attn_q.weight`");
        assert_eq!(Name("a\nb\u{1b}").to_string(), "`a\\nb\\u{1b}`");
        assert!(Name(&"é".repeat(100_000)).to_string().len() < 300);
    }
}
