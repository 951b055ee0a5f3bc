//! BitNet checkpoints: weights of −1, 0 and 1 under one scale per matrix (Ma et al. 2024, arXiv:2402.17764).
//!
//! `{module}.weight` is U8 `[N / 4, K]`: row r of the matrix is in bits 2⌊r / (N / 4)⌋ and up of row r mod N / 4, as 1 + code.
//! `{module}.weight_scale` is one number: weights are code · scale with `linear_class` `autobitlinear`, code / scale with
//! `bitlinear`. Run as TQ2_0, or Q4_0 where rows are not whole blocks of 256: exact but for the scale, which is rounded to f16.
//!
//! Source: `integrations/bitnet.py` of transformers 5.23. Where this reader is narrower, it says so by name: weights that are
//! rounded while they run (`quantization_mode` `online`), norms inside linear layers (`use_rms_norm`).

use crate::{
    CodedMatrix, FormatError, IntLayout, Ints, Source, TensorInfo,
    fault::{Fault, Name, malformed},
    safetensors::SafeTensors,
};
use edgelm_tensor::{
    DType,
    block::{BlockTq2_0, Coded, decode_row},
    write_ints,
};
use half::f16;
use serde::Deserialize;
use serde_json::Value;
use std::{ops::Range, path::Path};

/// What follows the name of a module in the tensors beside its weight.
pub const PARTS: [&str; 1] = ["weight_scale"];

/// Rows in one stored row.
const PACKED: usize = 4;

/// What `quantization_config` says of every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitNetConfig {
    /// Weights are codes divided by the scale, not multiplied.
    pub divides: bool,
}

/// What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method")]
    _method: String,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    use_rms_norm: Option<bool>,
    // Of the norm that is not there.
    #[serde(rename = "rms_norm_eps")]
    _rms_norm_eps: Option<f64>,
    // Which modules are quantized, their tensors show.
    #[serde(rename = "modules_to_not_convert")]
    _skipped: Option<Value>,
}

impl BitNetConfig {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }
}

fn read(value: &Value) -> Result<BitNetConfig, Fault> {
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    if let Some(mode) = stored.quantization_mode.as_deref().filter(|mode| *mode != "offline") {
        return unsupported(format!("`quantization_mode` {} is not supported", Name(mode)));
    }
    if stored.use_rms_norm == Some(true) {
        return unsupported("`use_rms_norm` is not supported".to_owned());
    }
    match stored.linear_class.as_deref() {
        None | Some("bitlinear") => Ok(BitNetConfig { divides: true }),
        Some("autobitlinear") => Ok(BitNetConfig { divides: false }),
        Some(other) => unsupported(format!("`linear_class` {} is not supported", Name(other))),
    }
}

/// A matrix of ternary weights, borrowed from the file.
pub struct TernaryTensor<'a> {
    shape: [usize; 2],
    packed: &'a [u8],
    source: &'a Source,
    /// The value of code 1.
    scale: f32,
}

impl<'a> TernaryTensor<'a> {
    /// The matrix of a weight's name. `None` if it is not stored as U8.
    ///
    /// Errors: a scale that is missing, of another type or shape, or with which weights would not be finite.
    pub fn open(file: &'a SafeTensors, weight: &str, config: BitNetConfig) -> Result<Option<Self>, FormatError> {
        let Some((info, source)) = file.info(weight).zip(file.source_of(weight)) else { return Ok(None) };
        if info.type_name != "U8" {
            return Ok(None);
        }
        Self::checked(file, weight, config, &info, source)
            .map(Some)
            .map_err(|fault| fault.within(format_args!("tensor {}", Name(weight))).at(source.path()))
    }

    fn checked(
        file: &'a SafeTensors,
        weight: &str,
        config: BitNetConfig,
        info: &TensorInfo<'a>,
        source: &'a Source,
    ) -> Result<Self, Fault> {
        let (&[rows, k], Some(packed)) = (info.shape, info.bytes) else {
            return malformed!("has shape {:?}, must be a matrix", info.shape);
        };
        let Some(n) = rows.checked_mul(PACKED) else { return malformed!("has {rows} packed rows") };
        let Some(stored) = file.info(&format!("{weight}_scale")) else {
            return malformed!("`weight_scale` is missing");
        };
        let ([] | [1], Some(dtype), Some(bytes)) = (stored.shape, stored.dtype, stored.bytes) else {
            return malformed!("`weight_scale` is {} {:?}, must be one number", stored.type_name, stored.shape);
        };
        let mut scale = [0.0];
        if decode_row(dtype, bytes, &mut scale).is_err() {
            return malformed!("`weight_scale` has {} bytes", bytes.len());
        }
        let scale = if config.divides { 1.0 / scale[0] } else { scale[0] };
        if !scale.is_finite() {
            return malformed!("`weight_scale` makes weights of {scale}");
        }
        Ok(Self { shape: [n, k], packed, source, scale })
    }

    /// 1 + code of each weight of a row. Nobody writes 3; it is read as transformers does, as code 2.
    fn row(&self, row: usize) -> impl Iterator<Item = u8> + '_ {
        let (stored, k) = (self.shape[0] / PACKED, self.shape[1]);
        let shift = 2 * (row / stored);
        self.packed[row % stored * k..][..k].iter().map(move |byte| byte >> shift & 3)
    }
}

impl CodedMatrix for TernaryTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        match self.shape[1] {
            k if k.is_multiple_of(256) => DType::TQ2_0,
            k if k.is_multiple_of(32) => DType::Q4_0,
            _ => DType::F16,
        }
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        let scale = f16::from_f32(self.scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
        let dtype = self.dtype();
        let mut out = Vec::new();
        for row in rows {
            let codes: Vec<u8> = self.row(row).collect();
            match dtype {
                DType::TQ2_0 => {
                    for codes in codes.as_chunks::<256>().0 {
                        let block = BlockTq2_0 { crumbs: [[0; 32]; 2], scale }.with_codes(&codes.map(u16::from));
                        out.extend_from_slice(bytemuck::bytes_of(&block));
                    }
                }
                DType::Q4_0 => {
                    for codes in codes.as_chunks::<32>().0 {
                        write_ints(dtype, scale, &codes.map(|code| code as i8 - 1), &mut out);
                    }
                }
                _ => {
                    let value = |code: u8| f16::from_f32(scale.to_f32() * (f32::from(code) - 1.0)).to_le_bytes();
                    out.extend(codes.into_iter().flat_map(value));
                }
            }
        }
        out
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        let k = self.shape[1];
        assert_eq!(out.len(), rows.len() * k, "values are not those of the rows");
        for (row, out) in rows.zip(out.chunks_exact_mut(k.max(1))) {
            out.iter_mut().zip(self.row(row)).for_each(|(out, code)| *out = self.scale * (f32::from(code) - 1.0));
        }
    }

    fn int_layout(&self) -> Option<IntLayout> {
        Some(IntLayout { bits: 4, group: self.shape[1], has_zeros: false, has_offsets: false, order: None })
    }

    fn ints(&self, rows: Range<usize>, out: &mut Ints) {
        for row in rows {
            out.scales.push(self.scale);
            out.codes.extend(self.row(row).map(|code| code as i8 - 1));
        }
    }

    fn release(&self) {
        self.source.release(self.packed);
    }
}
