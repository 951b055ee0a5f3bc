//! GPTQ checkpoints: `quantization_config` in config.json, and per linear layer `qweight`, `qzeros`, `scales` and `g_idx` in
//! place of `weight` (see [`column_ints`](crate::column_ints) for what they hold and how it runs).
//!
//! Source: GPTQModel 7.7 and AutoGPTQ 0.7, `checkpoint_format` `gptq` (where zeros are stored less one) and `gptq_v2`. Where this
//! reader is narrower, it says so by name: other layouts (`marlin`, `bitblas` …), other words than int32, rounded inputs,
//! adapters and rotations. What `dynamic` says of single modules, the shapes of their tensors show.

use crate::{
    FormatError,
    column_ints::{ColumnInts, Packing, Parts},
    fault::{Fault, Name, malformed},
    quantizer_keys::Keys,
    safetensors::SafeTensors,
};
use serde_json::Value;
use std::path::Path;

/// Suffixes of the tensors that stand for a weight.
pub const PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// Bits of quants that are read.
pub(crate) const BITS: [u32; 4] = [2, 3, 4, 8];

/// What `quantization_config` says of every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptqConfig {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs that share scales and zeros; `None`: all of them.
    pub group_size: Option<usize>,
    /// Groups were made in the order of importance: every matrix says which input is in which.
    pub desc_act: bool,
    /// Zeros are stored as they are (`gptq_v2`), not less one.
    pub is_v2: bool,
    /// Some modules have bits and groups of their own, which the shapes of their tensors show.
    pub varies: bool,
}

impl GptqConfig {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }

    /// The matrix that stands for `{module}.weight`. `None` if the file has none of its parts.
    ///
    /// Errors: parts that are missing, of another type or shape; groups that do not exist.
    pub fn open<'a>(&self, file: &'a SafeTensors, module: &str) -> Result<Option<ColumnInts<'a>>, FormatError> {
        let packing = Packing::AlongInputs { zero_less: u8::from(!self.is_v2) };
        let parts = Parts {
            bits: self.bits,
            packing,
            group_size: self.group_size,
            is_in_order: !self.desc_act,
            varies: self.varies,
        };
        ColumnInts::open(file, module, parts)
    }
}

fn read(value: &Value) -> Result<GptqConfig, Fault> {
    let mut keys = Keys::new(value)?;
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    let bits = keys.bits(&["bits"], &BITS)?;
    let is_v2 = match keys.text(&["checkpoint_format", "format"])? {
        None | Some("gptq") => false,
        Some("gptq_v2") => true,
        Some(other) => return unsupported(format!("`checkpoint_format` {} is not supported", Name(other))),
    };
    match keys.text(&["pack_dtype"])? {
        None | Some("int32") => {}
        Some(other) => return unsupported(format!("`pack_dtype` {} is not supported", Name(other))),
    }
    for key in ["is_marlin_format", "adapter", "rotation", "activation", "act_bits"] {
        keys.refuse(key)?;
    }
    if let Some(other) = keys.text(&["data_type"])?.filter(|kind| *kind != "int") {
        return unsupported(format!("`data_type` {} is not supported", Name(other)));
    }
    let varies = match keys.get(&["dynamic"])? {
        None => false,
        Some(Value::Object(modules)) => !modules.is_empty(),
        Some(other) => return malformed!("`dynamic` is {other}, must be an object"),
    };
    let desc_act = keys.flag(&["desc_act"])?.unwrap_or(false);
    let group_size = keys.group_size(&["group_size"])?;
    keys.finish()?;
    Ok(GptqConfig { bits, group_size, desc_act, is_v2, varies })
}
