//! Which format each tensor gets.

use crate::CompressError;
use edgelm_model::{LayerTensor, TensorId};
use edgelm_tensor::DType;

/// A named way of quantizing a whole model: a block format, or a mixture under GGUF's usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    name: &'static str,
    /// Linear layers.
    base: DType,
    /// Value projection and down projection of the layers that `More` selects.
    boosted: Option<(DType, More)>,
    /// llama.cpp's id of the mixture (`general.file_type`), informative.
    file_type: u32,
}

/// Layers whose most sensitive tensors get more bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    /// The first and last eighth and every third in between: where llama.cpp's mixtures found the error to matter most.
    EighthsAndThirds,
    /// The first eighth.
    FirstEighth,
}

const fn plain(name: &'static str, base: DType, file_type: u32) -> Scheme {
    Scheme { name, base, boosted: None, file_type }
}

const fn mixed(name: &'static str, base: DType, boost: DType, more: More, file_type: u32) -> Scheme {
    Scheme { name, base, boosted: Some((boost, more)), file_type }
}

const SCHEMES: [Scheme; 22] = [
    plain("F32", DType::F32, 0),
    plain("F16", DType::F16, 1),
    plain("BF16", DType::BF16, 32),
    plain("Q8_0", DType::Q8_0, 7),
    plain("Q6_K", DType::Q6_K, 18),
    plain("Q5_K", DType::Q5_K, 16),
    mixed("Q5_K_M", DType::Q5_K, DType::Q6_K, More::EighthsAndThirds, 17),
    plain("Q5_K_S", DType::Q5_K, 16),
    plain("Q5_1", DType::Q5_1, 9),
    plain("Q5_0", DType::Q5_0, 8),
    plain("Q4_K", DType::Q4_K, 14),
    mixed("Q4_K_M", DType::Q4_K, DType::Q6_K, More::EighthsAndThirds, 15),
    mixed("Q4_K_S", DType::Q4_K, DType::Q5_K, More::FirstEighth, 14),
    plain("Q4_1", DType::Q4_1, 3),
    plain("Q4_0", DType::Q4_0, 2),
    plain("IQ4_NL", DType::IQ4_NL, 25),
    plain("IQ4_XS", DType::IQ4_XS, 30),
    plain("Q3_K", DType::Q3_K, 11),
    mixed("Q3_K_M", DType::Q3_K, DType::Q5_K, More::EighthsAndThirds, 12),
    plain("Q3_K_S", DType::Q3_K, 11),
    plain("Q2_K", DType::Q2_K, 10),
    mixed("Q2_K_M", DType::Q2_K, DType::Q4_K, More::EighthsAndThirds, 10),
];

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
    pub fn choose(&self, id: TensorId, row_len: usize, layers: usize, is_head: bool) -> Choice {
        let mut wanted = self.base;
        if let (TensorId::Layer(layer, LayerTensor::V | LayerTensor::Down), Some((boost, more))) = (id, self.boosted)
            && more.includes(layer, layers)
        {
            wanted = boost;
        }
        if is_head && wanted.bits_per_weight() < DType::Q6_K.bits_per_weight() {
            wanted = DType::Q6_K;
        }
        fit(wanted, row_len)
    }
}

impl More {
    fn includes(self, layer: usize, layers: usize) -> bool {
        let eighth = layers / 8;
        match self {
            Self::FirstEighth => layer < eighth.max(1),
            Self::EighthsAndThirds => layer < eighth || layer >= layers - eighth || (layer - eighth) % 3 == 2,
        }
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
        let dtype = DType::from_name(format).map_err(|_| CompressError::UnknownScheme {
            name: format.to_owned(),
            known: DType::all().map(DType::name).collect::<Vec<_>>().join(", "),
        })?;
        Ok(Self { pattern: pattern.to_owned(), dtype })
    }
}

impl Keep {
    /// True if the whole name matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
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
    fn the_head_gets_more_bits_and_so_do_sensitive_layers() {
        let scheme = Scheme::from_name("Q4_K_M").unwrap();
        assert_eq!(scheme.choose(TensorId::TokenEmbedding, 512, 12, true).dtype, DType::Q6_K);
        assert_eq!(scheme.choose(TensorId::TokenEmbedding, 512, 12, false).dtype, DType::Q4_K);
        assert_eq!(scheme.choose(TensorId::Layer(0, LayerTensor::V), 512, 12, false).dtype, DType::Q6_K);
        assert_eq!(scheme.choose(TensorId::Layer(0, LayerTensor::Q), 512, 12, false).dtype, DType::Q4_K);
        assert_eq!(Scheme::from_name("Q8_0").unwrap().choose(TensorId::Output, 512, 12, true).dtype, DType::Q8_0);
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
