//! Which format each tensor gets.

use crate::CompressError;
use edgelm_model::{LayerTensor, TensorId};
use edgelm_tensor::DType;

/// A named way of quantizing a whole model: a block format, or a mixture under one of GGUF's usual names.
///
/// The mixtures spend their extra bits by role, where a bit bought most on mica-40m (KL to the parent over 24 windows,
/// imatrix): from plain Q4_K (4.73 bits, 0.0167), V in Q6_K gives 4.81 bits and 0.0151; with the down projection in five
/// bits as well, 5.03 bits and 0.0120. Raising both in every third layer instead, as llama.cpp does, gives 5.13 bits and
/// 0.0137.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    name: &'static str,
    /// Linear layers, but for the roles below.
    base: DType,
    value: DType,
    attention_output: DType,
    down: DType,
    /// llama.cpp's id of the mixture (`general.file_type`), informative.
    file_type: u32,
}

const fn plain(name: &'static str, base: DType, file_type: u32) -> Scheme {
    Scheme { name, base, value: base, attention_output: base, down: base, file_type }
}

const fn mixed(name: &'static str, base: DType, [value, attention_output, down]: [DType; 3], file_type: u32) -> Scheme {
    Scheme { name, base, value, attention_output, down, file_type }
}

const SCHEMES: [Scheme; 27] = {
    use DType::*;
    [
        plain("F32", F32, 0),
        plain("F16", F16, 1),
        plain("BF16", BF16, 32),
        plain("Q8_0", Q8_0, 7),
        plain("Q6_K", Q6_K, 18),
        plain("Q5_K", Q5_K, 16),
        mixed("Q5_K_M", Q5_K, [Q6_K, Q6_K, Q5_K], 17),
        plain("Q5_K_S", Q5_K, 16),
        plain("Q5_1", Q5_1, 9),
        plain("Q5_0", Q5_0, 8),
        plain("Q4_K", Q4_K, 14),
        mixed("Q4_K_M", Q4_K, [Q6_K, Q4_K, Q5_K], 15),
        mixed("Q4_K_S", Q4_K, [Q5_K, Q4_K, Q4_K], 14),
        plain("Q4_1", Q4_1, 3),
        plain("Q4_0", Q4_0, 2),
        plain("IQ4_NL", IQ4_NL, 25),
        plain("IQ4_XS", IQ4_XS, 30),
        plain("Q3_K", Q3_K, 11),
        mixed("Q3_K_M", Q3_K, [Q5_K, Q4_K, Q4_K], 12),
        plain("Q3_K_S", Q3_K, 11),
        mixed("Q2_K", Q2_K, [Q4_K, Q3_K, Q3_K], 10),
        plain("Q2_K_S", Q2_K, 21),
        plain("IQ3_S", IQ3_S, 26),
        plain("IQ3_XXS", IQ3_XXS, 23),
        plain("IQ2_S", IQ2_S, 28),
        plain("IQ2_XS", IQ2_XS, 20),
        plain("IQ2_XXS", IQ2_XXS, 19),
    ]
};

/// A format chosen for a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// What it gets.
    pub dtype: DType,
    /// What the scheme wanted, where its blocks do not fit the rows.
    pub instead_of: Option<DType>,
}

impl Scheme {
    /// Looks a name up, ignoring case.
    pub fn from_name(name: &str) -> Result<Self, CompressError> {
        SCHEMES.iter().find(|scheme| scheme.name.eq_ignore_ascii_case(name)).copied().ok_or_else(|| {
            let known = SCHEMES.map(|scheme| scheme.name).join(", ");
            CompressError::UnknownScheme { name: name.to_owned(), known }
        })
    }

    /// As in `--format`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `general.file_type` of a file made by it.
    pub(crate) fn file_type(&self) -> u32 {
        self.file_type
    }

    /// Format of a matrix with rows of `row_len`. `is_head`: the tensor makes the logits (the output head, or the
    /// embedding where tied), which gets at least Q6_K: it is read by every token's loss directly.
    pub fn choose(&self, id: TensorId, row_len: usize, is_head: bool) -> Choice {
        let wanted = match id {
            TensorId::Layer(_, LayerTensor::V) => self.value,
            TensorId::Layer(_, LayerTensor::O) => self.attention_output,
            TensorId::Layer(_, LayerTensor::Down) => self.down,
            _ if is_head && self.base.bits_per_weight() < DType::Q6_K.bits_per_weight() => DType::Q6_K,
            _ => self.base,
        };
        fit(wanted, row_len)
    }
}

/// The wanted format if rows are whole blocks of it; else the best that fits: for a super-block format the 32-value
/// format next to it in error, and F16 for rows that 32 does not divide.
pub(crate) fn fit(wanted: DType, row_len: usize) -> Choice {
    if row_len.is_multiple_of(wanted.block_len()) {
        return Choice { dtype: wanted, instead_of: None };
    }
    let small = match wanted {
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::IQ4_XS => DType::IQ4_NL,
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => DType::IQ4_NL,
        DType::Q5_K => DType::Q5_0,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    let dtype = if row_len.is_multiple_of(small.block_len()) { small } else { DType::F16 };
    Choice { dtype, instead_of: Some(wanted) }
}

/// `PATTERN=FORMAT` of `--keep`: tensors whose GGUF name matches get this format. `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    pub(crate) pattern: String,
    pub(crate) dtype: DType,
}

impl std::str::FromStr for Keep {
    type Err = CompressError;

    fn from_str(text: &str) -> Result<Self, CompressError> {
        let (pattern, format) = text.split_once('=').ok_or_else(|| CompressError::BadKeep(text.to_owned()))?;
        if pattern.is_empty() {
            return Err(CompressError::BadKeep(text.to_owned()));
        }
        let known = || DType::all().filter(|dtype| dtype.gguf_id().is_some());
        let found = known().find(|dtype| dtype.name().eq_ignore_ascii_case(format));
        let dtype = found.ok_or_else(|| CompressError::UnknownScheme {
            name: format.to_owned(),
            known: known().map(DType::name).collect::<Vec<_>>().join(", "),
        })?;
        Ok(Self { pattern: pattern.to_owned(), dtype })
    }
}

impl Keep {
    /// What matching tensors get.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True if the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let first = parts.next().unwrap_or("");
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_scheme_is_found_by_its_name() {
        for scheme in SCHEMES {
            assert_eq!(Scheme::from_name(&scheme.name.to_lowercase()).unwrap(), scheme);
        }
        let error = Scheme::from_name("Q9_9").unwrap_err().to_string();
        assert!(error.contains("Q9_9") && error.contains("Q4_K_M"), "{error}");
    }

    #[test]
    fn rows_that_do_not_fit_get_a_format_that_does() {
        for dtype in DType::all() {
            for row_len in [1, 31, 32, 96, 256, 1408, 512] {
                let choice = fit(dtype, row_len);
                assert_eq!(row_len % choice.dtype.block_len(), 0, "{dtype} {row_len}");
                assert_eq!(choice.instead_of.is_some(), choice.dtype != dtype);
                assert!(choice.dtype.bits_per_weight() >= dtype.bits_per_weight());
            }
        }
    }

    #[test]
    fn the_head_and_sensitive_roles_get_more_bits() {
        let scheme = Scheme::from_name("Q4_K_M").unwrap();
        let layer = |tensor| scheme.choose(TensorId::Layer(3, tensor), 512, false).dtype;
        assert_eq!(scheme.choose(TensorId::TokenEmbedding, 512, true).dtype, DType::Q6_K);
        assert_eq!(scheme.choose(TensorId::TokenEmbedding, 512, false).dtype, DType::Q4_K);
        assert_eq!([layer(LayerTensor::V), layer(LayerTensor::Q)], [DType::Q6_K, DType::Q4_K]);
        assert_eq!(scheme.choose(TensorId::Layer(0, LayerTensor::Down), 1408, false).dtype, DType::Q5_0);
        assert_eq!(Scheme::from_name("Q8_0").unwrap().choose(TensorId::Output, 512, true).dtype, DType::Q8_0);
    }

    #[test]
    fn patterns_match_whole_names() {
        let keep = |text: &str| text.parse::<Keep>().unwrap();
        assert!(keep("blk.*.attn_v.weight=Q8_0").matches("blk.11.attn_v.weight"));
        assert!(!keep("blk.*.attn_v.weight=Q8_0").matches("blk.11.attn_v.weights"));
        assert!(keep("*attn*=F16").matches("blk.0.attn_q.weight"));
        assert!(keep("token_embd.weight=q8_0").matches("token_embd.weight"));
        assert!(!keep("token_embd=Q8_0").matches("token_embd.weight"));
        assert!(keep("*=Q8_0").matches("anything"));
        assert!("=Q8_0".parse::<Keep>().is_err() && "x".parse::<Keep>().is_err() && "x=Q9".parse::<Keep>().is_err());
    }
}
