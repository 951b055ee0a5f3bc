//! AWQ checkpoints: `quantization_config` in config.json, and per linear layer `qweight`, `qzeros` and `scales` in place of
//! `weight` (see [`column_ints`](crate::column_ints) for what they hold and how it runs).
//!
//! Source: AutoAWQ 0.2.9, `version` `gemm`, the layout that is published. Where this reader is narrower, it says so by name:
//! other layouts (`gemv`, `gemv_fast`, `marlin`), other bits than 4, no zero points.

use crate::{
    FormatError,
    column_ints::{ColumnInts, Packing, Parts},
    fault::{Fault, Name},
    gptq::group_size,
    safetensors::SafeTensors,
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Suffixes of the tensors that stand for a weight.
pub const PARTS: [&str; 3] = ["qweight", "qzeros", "scales"];

/// The only number of bits there is.
const BITS: u32 = 4;

/// What `quantization_config` says of every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwqConfig {
    /// Inputs that share scales and zeros; `None`: all of them.
    pub group_size: Option<usize>,
}

/// What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method", alias = "method")]
    _method: String,
    #[serde(alias = "w_bit")]
    bits: u32,
    #[serde(alias = "q_group_size")]
    group_size: i64,
    #[serde(default = "yes")]
    zero_point: bool,
    version: Option<String>,
    checkpoint_format: Option<String>,
    format: Option<String>,
    // Which modules are quantized, their tensors show.
    #[serde(rename = "modules_to_not_convert")]
    _skipped: Option<Value>,
    #[serde(rename = "lm_head")]
    _lm_head: Option<bool>,
    // Said again by others that write this layout.
    #[serde(rename = "sym")]
    _sym: Option<bool>,
    #[serde(rename = "desc_act")]
    _desc_act: Option<bool>,
    #[serde(rename = "pack_dtype")]
    _pack_dtype: Option<Value>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
    // With which kernels others run it.
    #[serde(rename = "backend")]
    _backend: Option<Value>,
    #[serde(rename = "do_fuse")]
    _do_fuse: Option<Value>,
    #[serde(rename = "fuse_max_seq_len")]
    _fuse_max_seq_len: Option<Value>,
    #[serde(rename = "modules_to_fuse")]
    _modules_to_fuse: Option<Value>,
    #[serde(rename = "exllama_config")]
    _exllama_config: Option<Value>,
}

fn yes() -> bool {
    true
}

impl AwqConfig {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }

    /// The matrix that stands for `{module}.weight`. `None` if the file has none of its parts.
    ///
    /// Errors: parts that are missing, of another type or shape.
    pub fn open<'a>(&self, file: &'a SafeTensors, module: &str) -> Result<Option<ColumnInts<'a>>, FormatError> {
        let parts = Parts { bits: BITS, packing: Packing::Interleaved, group_size: self.group_size, is_in_order: true };
        ColumnInts::open(file, module, parts)
    }
}

fn read(value: &Value) -> Result<AwqConfig, Fault> {
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    if stored.bits != BITS {
        return unsupported(format!("`bits` {} is not supported", stored.bits));
    }
    if !stored.zero_point {
        return unsupported("weights without `zero_point` are not supported".to_owned());
    }
    let layouts =
        [("version", &stored.version), ("checkpoint_format", &stored.checkpoint_format), ("format", &stored.format)];
    for (key, layout) in layouts {
        if let Some(other) = layout.as_deref().filter(|layout| !layout.eq_ignore_ascii_case("gemm")) {
            return unsupported(format!("`{key}` {} is not supported", Name(other)));
        }
    }
    Ok(AwqConfig { group_size: group_size(stored.group_size)? })
}
