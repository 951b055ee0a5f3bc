//! What the products must know of a format; formats that agree in it share their code.

use crate::matmul::lanes::Kind;

/// What the product must know once quants and scales are unpacked:
/// W[n, k] = unit · (scale · (quant − OFFSET) + min), with one scale and min per 32 values, or per 16. Scales and mins are
/// integers, so that the products of a group are; units are floats, for a whole group.
///
/// |scale · (quant − OFFSET)| and |scale · (quant − OFFSET) + min| are below 2^15.
pub(in crate::matmul) trait Rule {
    const KIND: Kind;
    /// Subtracted from every quant.
    const OFFSET: i32 = 0;
    /// Scales (and mins) are per 16 values.
    const PER_16: bool = false;
    /// There are mins.
    const MINS: bool = false;
}

/// Signed bytes with one scale per 32. Scales are below 256: some lanes make bytes unsigned by 128, and take 128 · scale off
/// again as a min, of 16 bits.
pub(in crate::matmul) struct Signed;
impl Rule for Signed {
    const KIND: Kind = Kind::Signed;
}

/// Signed bytes with one scale per 16.
pub(in crate::matmul) struct SignedPer16;
impl Rule for SignedPer16 {
    const KIND: Kind = Kind::Signed;
    const PER_16: bool = true;
}

/// Quants up to `MAX` with one scale per 32.
pub(in crate::matmul) struct Unsigned<const MAX: i32, const OFFSET: i32>;
impl<const MAX: i32, const OFFSET: i32> Rule for Unsigned<MAX, OFFSET> {
    const KIND: Kind = Kind::Unsigned(MAX);
    const OFFSET: i32 = OFFSET;
}

/// Quants up to `MAX` with one scale and min per 32.
pub(in crate::matmul) struct WithMins<const MAX: i32>;
impl<const MAX: i32> Rule for WithMins<MAX> {
    const KIND: Kind = Kind::Unsigned(MAX);
    const MINS: bool = true;
}

/// Quants up to `MAX` with one scale per 16.
pub(in crate::matmul) struct Per16<const MAX: i32, const OFFSET: i32>;
impl<const MAX: i32, const OFFSET: i32> Rule for Per16<MAX, OFFSET> {
    const KIND: Kind = Kind::Unsigned(MAX);
    const OFFSET: i32 = OFFSET;
    const PER_16: bool = true;
}

/// Quants up to `MAX` with one scale and min per 16.
pub(in crate::matmul) struct Per16WithMins<const MAX: i32>;
impl<const MAX: i32> Rule for Per16WithMins<MAX> {
    const KIND: Kind = Kind::Unsigned(MAX);
    const PER_16: bool = true;
    const MINS: bool = true;
}
