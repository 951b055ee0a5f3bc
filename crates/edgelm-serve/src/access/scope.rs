//! What a key opens.

use std::{fmt, str::FromStr};

/// What its holder may do. Each scope includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Generate, embed, tokenize, list models.
    Use,
    /// Also see what others do: metrics and the dashboard's data.
    Admin,
}

impl Scope {
    /// As key files write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "use" => Ok(Self::Use),
            "admin" => Ok(Self::Admin),
            // Not quoted: what stands in the wrong place of a key file may be a key.
            _ => Err("is neither `use` nor `admin`".to_owned()),
        }
    }
}
