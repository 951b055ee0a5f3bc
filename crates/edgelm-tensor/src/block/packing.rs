//! Where the bits of codes stand in blocks.
//!
//! Formats with blocks of 32: byte i holds code i in its low half and code i + 16 in its high half. Those with blocks of
//! 256 spread the codes of 128, 64 or 32 consecutive values over the bits of 32 bytes.

/// Codes of at most eight bits as bytes. Panics if there are not N.
pub(super) fn small<const N: usize>(codes: &[u16]) -> [u8; N] {
    assert_eq!(codes.len(), N);
    std::array::from_fn(|i| codes[i] as u8)
}

/// Packs the low four bits of 32 codes.
pub(super) fn pack(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (codes[i] & 15) | (codes[i + 16] << 4))
}

/// The inverse of `pack`.
pub(super) fn unpack(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Packs bit 4 of 32 codes: code i into bit i of a little-endian word.
pub(super) fn pack_fifth(codes: &[u8; 32]) -> [u8; 4] {
    codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | (u32::from(code >> 4 & 1) << i)).to_le_bytes()
}

/// The codes of `pack` and `pack_fifth`.
pub(super) fn unpack_five(bytes: &[u8; 16], fifth: [u8; 4]) -> [u8; 32] {
    let bits = u32::from_le_bytes(fifth);
    let low = unpack(bytes);
    std::array::from_fn(|i| low[i] | ((bits >> i & 1) << 4) as u8)
}

/// Low two bits of 256 codes: code i into byte i mod 32 of its half, from the lowest bits up every 32 codes.
pub(super) fn pack_crumbs(codes: &[u16]) -> [[u8; 32]; 2] {
    assert_eq!(codes.len(), 256);
    std::array::from_fn(|half| {
        std::array::from_fn(|i| (0..4).fold(0, |byte, k| byte | (codes[128 * half + 32 * k + i] as u8 & 3) << (2 * k)))
    })
}

/// Low four bits of 256 codes: per 64 of them 32 bytes, the first 32 in the low halves.
pub(super) fn pack_pairs(codes: &[u16]) -> [[u8; 32]; 4] {
    assert_eq!(codes.len(), 256);
    std::array::from_fn(|pair| {
        std::array::from_fn(|i| codes[64 * pair + i] as u8 & 15 | (codes[64 * pair + 32 + i] as u8) << 4)
    })
}

/// One bit of 256 codes: that of code i into bit i / 32 of byte i mod 32.
pub(super) fn pack_bit(codes: &[u16], bit: u32) -> [u8; 32] {
    assert_eq!(codes.len(), 256);
    std::array::from_fn(|i| (0..8).fold(0, |byte, k| byte | ((codes[32 * k + i] >> bit & 1) as u8) << k))
}

/// Packs 4-bit codes of scales: those of even places into the low halves.
pub(super) fn pack_nibbles<const B: usize>(codes: &[u8]) -> [u8; B] {
    assert_eq!(codes.len(), 2 * B);
    std::array::from_fn(|j| codes[2 * j] & 15 | codes[2 * j + 1] << 4)
}

/// The inverse of `pack_nibbles`.
pub(super) fn nibbles<const N: usize>(bytes: &[u8]) -> [u8; N] {
    assert_eq!(bytes.len(), N / 2);
    std::array::from_fn(|j| bytes[j / 2] >> (4 * (j % 2)) & 15)
}
