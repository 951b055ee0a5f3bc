//! Kernel families and how this CPU's are found.

use crate::KernelError;

/// A kernel family, as named by `--isa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Isa {
    Scalar,
    Avx2,
    Avx512,
    Amx,
    Neon,
    Dotprod,
    I8mm,
}

impl Isa {
    /// As written on the command line.
    pub fn name(self) -> &'static str {
        todo!()
    }
    /// Families this CPU can run, best first; the last is always `Scalar`.
    pub fn available() -> Vec<Isa> {
        todo!()
    }
}

impl std::str::FromStr for Isa {
    type Err = KernelError;
    fn from_str(name: &str) -> Result<Self, KernelError> {
        let _ = name;
        todo!()
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
