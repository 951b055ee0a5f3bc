//! The 12 bytes in which Q4_K and Q5_K keep eight 6-bit scales and eight 6-bit minimums.
//!
//! ```text
//! byte 0..4    s[0..4], and in the upper two bits: bits 4, 5 of s[4..8]
//!      4..8    m[0..4], and in the upper two bits: bits 4, 5 of m[4..8]
//!      8..12   low halves: bits 0..4 of s[4..8], high halves: bits 0..4 of m[4..8]
//! ```

/// Packs scales and minimums, each below 64.
pub fn pack_k_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => (scales[i] & 63) | (scales[i + 4] >> 4) << 6,
        4..8 => (mins[i - 4] & 63) | (mins[i] >> 4) << 6,
        _ => (scales[i - 4] & 15) | mins[i - 4] << 4,
    })
}

/// Scales and minimums of the 12 bytes.
pub fn unpack_k_scales(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let scales =
        std::array::from_fn(|j| if j < 4 { bytes[j] & 63 } else { (bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4 });
    let mins =
        std::array::from_fn(|j| if j < 4 { bytes[j + 4] & 63 } else { (bytes[j + 4] >> 4) | (bytes[j] >> 6) << 4 });
    (scales, mins)
}
