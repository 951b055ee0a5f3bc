//! The list of element types and what is known of each without looking at data.

use crate::TensorError;

/// How the values of a tensor's rows are stored. Names, block sizes and ids are those of GGUF, as far as it has them:
/// `NF4` and `FP4` are those of bitsandbytes, `Q8_24` and `Q4_24` Q8_0 and Q4_0 with two of every four values left out.
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    NF4,
    FP4,
    Q8_24,
    Q4_24,
    MXFP4,
    TQ1_0,
    TQ2_0,
}

type Row = (DType, &'static str, Option<u32>, usize, usize);

/// (type, name, GGUF id, values per block, bytes per block)
const TABLE: [Row; 27] = [
    (DType::F32, "F32", Some(0), 1, 4),
    (DType::F16, "F16", Some(1), 1, 2),
    (DType::BF16, "BF16", Some(30), 1, 2),
    (DType::Q4_0, "Q4_0", Some(2), 32, 18),
    (DType::Q4_1, "Q4_1", Some(3), 32, 20),
    (DType::Q5_0, "Q5_0", Some(6), 32, 22),
    (DType::Q5_1, "Q5_1", Some(7), 32, 24),
    (DType::Q8_0, "Q8_0", Some(8), 32, 34),
    (DType::Q2_K, "Q2_K", Some(10), 256, 84),
    (DType::Q3_K, "Q3_K", Some(11), 256, 110),
    (DType::Q4_K, "Q4_K", Some(12), 256, 144),
    (DType::Q5_K, "Q5_K", Some(13), 256, 176),
    (DType::Q6_K, "Q6_K", Some(14), 256, 210),
    (DType::IQ4_NL, "IQ4_NL", Some(20), 32, 18),
    (DType::IQ4_XS, "IQ4_XS", Some(23), 256, 136),
    (DType::IQ2_XXS, "IQ2_XXS", Some(16), 256, 66),
    (DType::IQ2_XS, "IQ2_XS", Some(17), 256, 74),
    (DType::IQ2_S, "IQ2_S", Some(22), 256, 82),
    (DType::IQ3_XXS, "IQ3_XXS", Some(18), 256, 98),
    (DType::IQ3_S, "IQ3_S", Some(21), 256, 110),
    (DType::NF4, "NF4", None, 32, 18),
    (DType::FP4, "FP4", None, 32, 18),
    (DType::Q8_24, "Q8_24", None, 32, 22),
    (DType::Q4_24, "Q4_24", None, 32, 14),
    (DType::MXFP4, "MXFP4", Some(39), 32, 17),
    (DType::TQ1_0, "TQ1_0", Some(34), 256, 54),
    (DType::TQ2_0, "TQ2_0", Some(35), 256, 66),
];

impl DType {
    /// Every type, in the order of declaration.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// GGUF's spelling, e.g. `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Looks a name up, ignoring case.
    pub fn from_name(name: &str) -> Result<Self, TensorError> {
        TABLE
            .iter()
            .find(|row| row.1.eq_ignore_ascii_case(name))
            .map(|row| row.0)
            .ok_or_else(|| TensorError::UnknownName(name.to_owned()))
    }

    /// The id that GGUF files store (`ggml_type`), `None` where GGUF has no such type.
    pub fn gguf_id(self) -> Option<u32> {
        self.row().2
    }

    /// The type of a GGUF id, `None` where this crate does not know it.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == Some(id)).map(|row| row.0)
    }

    /// Values per block; rows are whole blocks.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// True if of every four values two are zero, and not stored.
    pub fn is_sparse(self) -> bool {
        matches!(self, Self::Q8_24 | Self::Q4_24)
    }

    /// True for everything but F32, F16 and BF16.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Storage per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a row of `len` values. Errors where `len` is not whole blocks; never overflows.
    pub fn row_bytes(self, len: usize) -> Result<usize, TensorError> {
        let error = TensorError::RowLength { dtype: self, len, block_len: self.block_len() };
        if !len.is_multiple_of(self.block_len()) {
            return Err(error);
        }
        (len / self.block_len()).checked_mul(self.block_bytes()).ok_or(error)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_order_of_declaration() {
        for dtype in DType::all() {
            assert_eq!(dtype.row().0, dtype);
            if let Some(id) = dtype.gguf_id() {
                assert_eq!(DType::from_gguf_id(id), Some(dtype));
            }
            assert_eq!(DType::from_name(&dtype.name().to_lowercase()), Ok(dtype));
        }
    }
}
