//! Kernel families and how this CPU's are found.
//!
//! A token type (`Avx2`, `Neon`, …) exists only if the CPU reported its features, so holding one is the proof that
//! calling a function compiled for them is sound.

use crate::KernelError;

/// A kernel family, as named by `--isa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Isa {
    Scalar,
    Avx2,
    AvxVnni,
    Avx512,
    Amx,
    Neon,
    Dotprod,
    I8mm,
}

const NAMES: [(Isa, &str); 8] = [
    (Isa::Scalar, "scalar"),
    (Isa::Avx2, "avx2"),
    (Isa::AvxVnni, "avxvnni"),
    (Isa::Avx512, "avx512"),
    (Isa::Amx, "amx"),
    (Isa::Neon, "neon"),
    (Isa::Dotprod, "dotprod"),
    (Isa::I8mm, "i8mm"),
];

impl Isa {
    /// As written on the command line.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// Families this CPU can run and this build has kernels for, best first; the last is always `Scalar`.
    pub fn available() -> Vec<Isa> {
        let mut all = detect();
        all.push(Isa::Scalar);
        all
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Isa> {
    let amx = Avx512::<true>::detect().map(|_| Isa::Amx);
    let avx512 = Avx512::<false>::detect().map(|_| Isa::Avx512);
    let avx_vnni = Avx2::<true>::detect().map(|_| Isa::AvxVnni);
    let avx2 = Avx2::<false>::detect().map(|_| Isa::Avx2);
    amx.into_iter().chain(avx512).chain(avx_vnni).chain(avx2).collect()
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Isa> {
    let i8mm = I8mm::detect().map(|_| Isa::I8mm);
    let dotprod = Dotprod::detect().map(|_| Isa::Dotprod);
    let neon = Neon::detect().map(|_| Isa::Neon);
    i8mm.into_iter().chain(dotprod).chain(neon).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Isa> {
    Vec::new()
}

impl std::str::FromStr for Isa {
    type Err = KernelError;
    fn from_str(name: &str) -> Result<Self, KernelError> {
        let known = NAMES.iter().find(|row| row.1.eq_ignore_ascii_case(name));
        known.map(|row| row.0).ok_or_else(|| KernelError::UnknownIsa(name.to_owned()))
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Proof of AVX2, FMA and F16C, and, with `VNNI`, of AVX-VNNI.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

#[cfg(target_arch = "x86_64")]
impl<const VNNI: bool> Avx2<VNNI> {
    /// `Some` only if the CPU has all of them.
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then_some(Self(()))
    }
}

/// Proof of AVX-512 F, BW, VL, DQ and VNNI, of everything in [`Avx2`], and, with `AMX`, of permitted AMX int8.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const AMX: bool>(());

#[cfg(target_arch = "x86_64")]
impl<const AMX: bool> Avx512<AMX> {
    /// `Some` only if the CPU has all of them.
    pub(crate) fn detect() -> Option<Self> {
        let has = Avx2::<false>::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && (!AMX || crate::amx::permitted());
        has.then_some(Self(()))
    }

    /// The proof of everything but AMX.
    pub(crate) fn plain(self) -> Avx512<false> {
        Avx512(())
    }
}

/// Proof of NEON, which every 64-bit Arm processor that runs Linux has.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

#[cfg(target_arch = "aarch64")]
impl Neon {
    /// `Some` only if the CPU has it.
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Proof of `sdot` and `udot`, and of [`Neon`].
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dotprod(());

#[cfg(target_arch = "aarch64")]
impl Dotprod {
    /// `Some` only if the CPU has both.
    pub(crate) fn detect() -> Option<Self> {
        let has = Neon::detect().is_some() && std::arch::is_aarch64_feature_detected!("dotprod");
        has.then_some(Self(()))
    }
}

/// Proof of the int8 matrix instructions, and of [`Dotprod`].
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct I8mm(());

#[cfg(target_arch = "aarch64")]
impl I8mm {
    /// `Some` only if the CPU has both.
    pub(crate) fn detect() -> Option<Self> {
        let has = Dotprod::detect().is_some() && std::arch::is_aarch64_feature_detected!("i8mm");
        has.then_some(Self(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_declaration_and_parse_back() {
        for (index, (isa, name)) in NAMES.into_iter().enumerate() {
            assert_eq!(isa as usize, index);
            assert_eq!(name.to_uppercase().parse::<Isa>().expect("known"), isa);
            assert_eq!(isa.to_string(), name);
        }
        assert!(matches!("sse9".parse::<Isa>(), Err(KernelError::UnknownIsa(name)) if name == "sse9"));
    }

    /// A run under an emulator says which family its processor must come out as.
    #[test]
    fn the_best_family_is_the_expected_one() {
        if let Some(expected) = std::env::var_os("EDGELM_EXPECT_ISA").filter(|name| !name.is_empty()) {
            assert_eq!(expected, Isa::available()[0].name());
        }
    }

    #[test]
    fn scalar_is_always_last() {
        assert_eq!(Isa::available().last(), Some(&Isa::Scalar));
    }
}
