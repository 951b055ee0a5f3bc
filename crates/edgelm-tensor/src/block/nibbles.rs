//! Packing of 32 small codes as the formats with blocks of 32 do it: byte i holds code i in its low half and code
//! i + 16 in its high half.

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
