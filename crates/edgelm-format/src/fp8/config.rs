//! `quantization_config`.

use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What it says of every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp8Config {
    /// Rows and columns that share a scale; `None`: all, or each row.
    pub block: Option<[usize; 2]>,
}

/// What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method")]
    _method: String,
    fmt: Option<String>,
    weight_block_size: Option<Vec<usize>>,
    kv_cache_scheme: Option<Value>,
    // Inputs are not rounded to eight-bit floats here.
    #[serde(rename = "activation_scheme")]
    _activation_scheme: Option<String>,
    // Which modules are quantized, their tensors show.
    #[serde(rename = "modules_to_not_convert", alias = "ignored_layers")]
    _skipped: Option<Value>,
    // That scales are powers of two.
    #[serde(rename = "scale_fmt")]
    _scale_format: Option<String>,
    #[serde(rename = "dequantize")]
    _dequantize: Option<bool>,
}

impl Fp8Config {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }
}

fn read(value: &Value) -> Result<Fp8Config, Fault> {
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    match stored.fmt.as_deref() {
        None | Some("e4m3" | "float8_e4m3fn") => {}
        Some(other) => return Err(Fault::Unsupported(format!("`fmt` {} is not supported", Name(other)))),
    }
    if stored.kv_cache_scheme.is_some_and(|value| !value.is_null()) {
        return Err(Fault::Unsupported("`kv_cache_scheme` is not supported".to_owned()));
    }
    let block = match stored.weight_block_size.as_deref() {
        None => None,
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Some([rows, columns]),
        Some(other) => return malformed!("`weight_block_size` is {other:?}, must be two numbers above 0"),
    };
    Ok(Fp8Config { block })
}
