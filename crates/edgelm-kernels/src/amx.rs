//! The tile registers of AMX: permission, configuration, loads, stores and int8 products.
//!
//! The compiler knows the instructions only by inline assembly here, and never uses tile registers itself, so their
//! contents survive between the wrappers. A thread's configuration is undone with [`release`] when a job ends: a thread
//! in that state is switched faster and shows no tiles to whatever runs next.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; Linux
//! `Documentation/arch/x86/xstate.rst` for the permission.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Whether the CPU has AMX int8 and the kernel lets this process use it. Asked for once.
pub(crate) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| has_instructions() && request())
}

fn has_instructions() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    if __cpuid_count(0, 0).eax < 7 {
        return false;
    }
    __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

#[cfg(target_os = "linux")]
fn request() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_int = 18;
    // SAFETY: the call takes two integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All tiles full: 0 to 3 for 16 × 16 sums, 4 and 5 for A with 16 rows of 64 bytes, 6 and 7 for B with 16 rows of 16
/// columns of 4 bytes, in C = A · B.
///
/// # Safety
/// [`permitted`].
pub(crate) unsafe fn configure() {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: `config` is a valid 64-byte configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) }
}

/// Gives the tile state up.
///
/// # Safety
/// [`permitted`].
pub(crate) unsafe fn release() {
    // SAFETY: touches tile registers only.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// Tile T = 0.
///
/// # Safety
/// After [`configure`].
#[inline(always)]
pub(crate) unsafe fn zero<const T: u8>() {
    // SAFETY: touches a tile register only.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
}

/// Tile T = its rows from `from` on, `stride` bytes apart.
///
/// # Safety
/// After [`configure`]; every row is readable memory.
#[inline(always)]
pub(crate) unsafe fn load<const T: u8>(from: *const u8, stride: usize) {
    // SAFETY: reads what the caller vouches for.
    unsafe {
        asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) stride,
            options(nostack, readonly, preserves_flags))
    }
}

/// Rows of tile T to `to` on, `stride` bytes apart.
///
/// # Safety
/// After [`configure`]; every row is writable memory of the caller.
#[inline(always)]
pub(crate) unsafe fn store<const T: u8>(to: *mut u8, stride: usize) {
    // SAFETY: writes what the caller vouches for.
    unsafe {
        asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
            options(nostack, preserves_flags))
    }
}

/// C += A · B in i32, both with signed bytes.
///
/// # Safety
/// After [`configure`].
#[inline(always)]
pub(crate) unsafe fn dot_signed<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: touches tile registers only.
    unsafe {
        asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
            options(nostack, nomem, preserves_flags))
    }
}

/// C += A · B in i32, A with unsigned, B with signed bytes.
///
/// # Safety
/// After [`configure`].
#[inline(always)]
pub(crate) unsafe fn dot_unsigned_signed<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: touches tile registers only.
    unsafe {
        asm!("tdpbusd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
            options(nostack, nomem, preserves_flags))
    }
}

/// C += A · B in i32, A with signed, B with unsigned bytes.
///
/// # Safety
/// After [`configure`].
#[inline(always)]
pub(crate) unsafe fn dot_signed_unsigned<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: touches tile registers only.
    unsafe {
        asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
            options(nostack, nomem, preserves_flags))
    }
}
