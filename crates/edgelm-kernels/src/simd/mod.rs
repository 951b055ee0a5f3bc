//! Sixteen f32 lanes, the same on every instruction set, and the one place where generic code meets it.
//!
//! Code over [`Lanes`] is written once, always `#[inline(always)]`, and compiled inside one `#[target_feature]`
//! function per family by [`dispatch`]. Sixteen lanes everywhere (one AVX-512 register, two of AVX2, four of NEON, an array)
//! fix the order of every sum, so the vector families agree bit for bit and scalar differs only by fused multiply-add.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
#[cfg(target_arch = "aarch64")]
mod neon;
mod normal;
mod scalar;
mod softplus;
mod tanh;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512};
pub(crate) use {
    exp::{exp, exp2_negative},
    normal::normal_tail,
    scalar::Scalar,
    softplus::softplus,
    tanh::tanh,
};

use crate::Cpu;

/// Lanes of every [`Lanes`] type.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 values.
///
/// Generic code is only entered through [`dispatch`] or through the integer lanes that name one of these types as their own,
/// so whoever holds one runs on a CPU that has its instructions; that is what makes the methods safe.
pub(crate) trait Lanes: Copy {
    /// Sums of this type that stay in registers with room for operands: 2, 4 or 16.
    const ACCUMULATORS: usize;

    fn splat(value: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    /// IEEE half precision, exactly.
    fn load_f16(from: &[u16; LANES]) -> Self;
    /// Rounded to nearest, ties to even, beyond 2²⁴.
    fn load_i32(from: &[u32; LANES]) -> Self;
    /// The low byte of each lane rounded to the nearest integer, ties to even; magnitudes below 2²².
    fn store_bytes(self, to: &mut [u8; LANES]);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// self · factor + addend; one rounding where the CPU fuses, two in scalar.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// 2^self for integers in -126..=127; +∞ for 128.
    fn exp2_integer(self) -> Self;
    /// self · 2^n for integers n, where neither 2^n nor the result leaves the normal numbers.
    fn scale_by_power(self, n: Self) -> Self;
    /// `then` where self < bound, else (NaN included) `otherwise`.
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// Lanes `from..to` of self, `fill` elsewhere.
    fn keep(self, from: i32, to: i32, fill: f32) -> Self;

    /// Sum as a tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
    fn sum(self) -> f32;
    /// Largest lane.
    fn largest(self) -> f32;
}

/// Sixteen values from the front of `from`, `fill` in the lanes beyond its end.
#[inline(always)]
pub(crate) fn load_partial<L: Lanes>(from: &[f32], fill: f32) -> L {
    let mut lanes = [fill; LANES];
    lanes[..from.len()].copy_from_slice(from);
    L::load(&lanes)
}

/// Writes as many lanes as `to` holds.
#[inline(always)]
pub(crate) fn store_partial<L: Lanes>(value: L, to: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    value.store(&mut lanes);
    let len = to.len();
    to.copy_from_slice(&lanes[..len]);
}

/// The first 16 · N values of `from`; without `WHOLE`, all of the fewer than sixteen that there are, and zeros.
#[inline(always)]
pub(crate) fn load_chunks<L: Lanes, const N: usize, const WHOLE: bool>(from: &[f32]) -> [L; N] {
    if !WHOLE {
        return [load_partial(from, 0.0); N];
    }
    let chunks: &[[f32; LANES]; N] = from.as_chunks().0.first_chunk().expect("whole chunks");
    let mut values = [L::splat(0.0); N];
    for (value, chunk) in values.iter_mut().zip(chunks) {
        *value = L::load(chunk);
    }
    values
}

/// Writes what [`load_chunks`] reads.
#[inline(always)]
pub(crate) fn store_chunks<L: Lanes, const N: usize, const WHOLE: bool>(values: [L; N], to: &mut [f32]) {
    if !WHOLE {
        return store_partial(values[0], to);
    }
    let chunks: &mut [[f32; LANES]; N] = to.as_chunks_mut().0.first_chunk_mut().expect("whole chunks");
    for (value, chunk) in values.iter().zip(chunks) {
        value.store(chunk);
    }
}

/// A computation written once over [`Lanes`]; `run` is `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` compiled for the family of `cpu`.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch<K: Kernel>(cpu: &Cpu, kernel: K) -> K::Output {
    match cpu.isa() {
        // SAFETY: a `Cpu` has a family only if this CPU reported its features.
        crate::Isa::Avx512 | crate::Isa::Amx => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        crate::Isa::Avx2 | crate::Isa::AvxVnni => unsafe { avx2::run(kernel) },
        _ => kernel.run::<scalar::Scalar>(),
    }
}

/// Runs `kernel` compiled for the family of `cpu`; the families of Arm differ only in integer products.
#[cfg(target_arch = "aarch64")]
pub(crate) fn dispatch<K: Kernel>(cpu: &Cpu, kernel: K) -> K::Output {
    match cpu.isa() {
        // SAFETY: a `Cpu` has a family only if this CPU reported its features.
        crate::Isa::Neon | crate::Isa::Dotprod | crate::Isa::I8mm => unsafe { neon::run(kernel) },
        _ => kernel.run::<scalar::Scalar>(),
    }
}

/// Runs `kernel` over arrays, which the compiler turns into the vectors that every CPU of the target has.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn dispatch<K: Kernel>(_cpu: &Cpu, kernel: K) -> K::Output {
    kernel.run::<scalar::Scalar>()
}
