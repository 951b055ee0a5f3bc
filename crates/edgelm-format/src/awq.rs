//! AWQ checkpoints: `quantization_config` in config.json, and per linear layer `qweight`, `qzeros` and `scales` in place of
//! `weight` (see [`column_ints`](crate::column_ints) for what they hold and how it runs).
//!
//! Source: AutoAWQ 0.2.9, `version` `gemm`, the layout that is published. Where this reader is narrower, it says so by name:
//! other layouts (`gemv`, `gemv_fast`, `marlin`), other bits than 4, no zero points.

use crate::{
    FormatError,
    column_ints::{ColumnInts, Packing, Parts},
    fault::{Fault, Name},
    quantizer_keys::Keys,
    safetensors::SafeTensors,
};
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

impl AwqConfig {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }

    /// The matrix that stands for `{module}.weight`. `None` if the file has none of its parts.
    ///
    /// Errors: parts that are missing, of another type or shape.
    pub fn open<'a>(&self, file: &'a SafeTensors, module: &str) -> Result<Option<ColumnInts<'a>>, FormatError> {
        let parts = Parts {
            bits: BITS,
            packing: Packing::Interleaved,
            group_size: self.group_size,
            is_in_order: true,
            varies: false,
        };
        ColumnInts::open(file, module, parts)
    }
}

fn read(value: &Value) -> Result<AwqConfig, Fault> {
    let mut keys = Keys::new(value)?;
    keys.bits(&["bits", "w_bit"], &[BITS])?;
    // Tools repeat the layout under several names.
    for key in ["version", "checkpoint_format", "format"] {
        if let Some(other) = keys.text(&[key])?.filter(|layout| !layout.eq_ignore_ascii_case("gemm")) {
            return Err(Fault::Unsupported(format!("`{key}` {} is not supported", Name(other))));
        }
    }
    for key in ["adapter", "rotation", "activation", "act_bits", "desc_act", "dynamic"] {
        keys.refuse(key)?;
    }
    for (key, only) in [("pack_dtype", "int32"), ("data_type", "int")] {
        if let Some(other) = keys.text(&[key])?.filter(|value| *value != only) {
            return Err(Fault::Unsupported(format!("`{key}` {} is not supported", Name(other))));
        }
    }
    let group_size = keys.group_size(&["group_size", "q_group_size"])?;
    keys.finish()?;
    Ok(AwqConfig { group_size })
}
