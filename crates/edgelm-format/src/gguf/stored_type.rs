//! Tensor types that GGUF files can name, including those this program has no decoder for.

use edgelm_tensor::DType;
use std::borrow::Cow;

/// (GGUF id, name, values per block, bytes per block) of the types `DType` lacks, so that files that use them can be
/// listed and bounds-checked. Source: `GGML_QUANT_SIZES` of gguf-py.
const FOREIGN: [(u32, &str, usize, usize); 12] = [
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (19, "IQ1_S", 256, 50),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// A type id as stored, with what is known of it.
#[derive(Debug, Clone)]
pub(super) struct StoredType {
    pub(super) id: u32,
    pub(super) name: Cow<'static, str>,
    pub(super) dtype: Option<DType>,
    /// (values per block, bytes per block), `None` for ids nobody has told us of.
    pub(super) block: Option<(usize, usize)>,
}

impl StoredType {
    pub(super) fn from_id(id: u32) -> Self {
        if let Some(dtype) = DType::from_gguf_id(id) {
            let block = Some((dtype.block_len(), dtype.block_bytes()));
            return Self { id, name: dtype.name().into(), dtype: Some(dtype), block };
        }
        match FOREIGN.iter().find(|row| row.0 == id) {
            Some(&(_, name, values, bytes)) => {
                Self { id, name: name.into(), dtype: None, block: Some((values, bytes)) }
            }
            None => Self { id, name: format!("type {id}").into(), dtype: None, block: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_types_are_foreign() {
        for (id, name, ..) in FOREIGN {
            assert_eq!(DType::from_gguf_id(id), None, "{name}");
            assert_eq!(StoredType::from_id(id).name, name);
        }
        assert_eq!(StoredType::from_id(12).dtype, Some(DType::Q4_K));
        assert_eq!(StoredType::from_id(99).name, "type 99");
    }
}
