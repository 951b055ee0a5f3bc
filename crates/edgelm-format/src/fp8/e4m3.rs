//! A sign, four bits of exponent and three of mantissa (`float8_e4m3fn`): no infinities, and all ones are no number.
//!
//! Source: Micikevicius et al. 2022, arXiv:2209.05433.

/// The value of eight bits.
pub(super) const fn value(bits: u8) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 15, (bits & 7) as f32);
    let magnitude = match (exponent, bits & 127) {
        (_, 0x7f) => f32::NAN,
        // 2^-9 to a step.
        (0, _) => mantissa / 512.0,
        // 2^(exponent - 7), as the bits of an f32.
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent as u32 + 120) << 23),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The values of all bits.
pub(super) static VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        values[bits] = value(bits as u8);
        bits += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Of the paper's table 1, and of `ml_dtypes`.
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3d, 1.625),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0x81, -0.001_953_125),
        ] {
            assert_eq!(VALUES[bits], value, "{bits:#x}");
        }
        assert!(VALUES[0x7f].is_nan() && VALUES[0xff].is_nan());
        assert!(VALUES[..0x7f].is_sorted());
    }
}
