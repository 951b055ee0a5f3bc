//! GPTQ checkpoints: `quantization_config` in config.json, and per linear layer `qweight`, `qzeros`, `scales` and `g_idx` in
//! place of `weight` (see [`column_ints`](crate::column_ints) for what they hold and how it runs).
//!
//! Source: GPTQModel 7.7 and AutoGPTQ 0.7, `checkpoint_format` `gptq` (where zeros are stored less one) and `gptq_v2`. Where this
//! reader is narrower, it says so by name: other layouts (`marlin`, `bitblas` …), other words than int32, rules per module
//! (`dynamic`), adapters and rotations.

use crate::{
    FormatError,
    column_ints::{ColumnInts, Packing, Parts},
    fault::{Fault, Name},
    safetensors::SafeTensors,
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Suffixes of the tensors that stand for a weight.
pub const PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

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
}

/// What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method", alias = "method")]
    _method: String,
    bits: u32,
    group_size: i64,
    #[serde(default)]
    desc_act: bool,
    #[serde(alias = "format")]
    checkpoint_format: Option<String>,
    pack_dtype: Option<String>,
    is_marlin_format: Option<bool>,
    dynamic: Option<Value>,
    adapter: Option<Value>,
    rotation: Option<Value>,
    // Zeros are stored, whatever it says.
    #[serde(rename = "sym")]
    _sym: Option<bool>,
    // Which modules are quantized, their tensors show.
    #[serde(rename = "lm_head")]
    _lm_head: Option<bool>,
    #[serde(rename = "modules_in_block_to_quantize")]
    _modules: Option<Value>,
    #[serde(rename = "block_name_to_quantize")]
    _block_name: Option<Value>,
    #[serde(rename = "module_name_preceding_first_block")]
    _preceding: Option<Value>,
    // How the quants were found.
    #[serde(rename = "damp_percent")]
    _damp_percent: Option<f64>,
    #[serde(rename = "damp_auto_increment")]
    _damp_auto_increment: Option<f64>,
    #[serde(rename = "true_sequential")]
    _true_sequential: Option<bool>,
    #[serde(rename = "static_groups")]
    _static_groups: Option<bool>,
    #[serde(rename = "act_group_aware")]
    _act_group_aware: Option<bool>,
    #[serde(rename = "hyb_act")]
    _hyb_act: Option<bool>,
    #[serde(rename = "mse")]
    _mse: Option<f64>,
    #[serde(rename = "dataset")]
    _dataset: Option<Value>,
    #[serde(rename = "tokenizer")]
    _tokenizer: Option<Value>,
    #[serde(rename = "model_seqlen")]
    _model_seqlen: Option<Value>,
    #[serde(rename = "batch_size")]
    _batch_size: Option<Value>,
    #[serde(rename = "pad_token_id")]
    _pad_token_id: Option<Value>,
    #[serde(rename = "cache_block_outputs")]
    _cache_block_outputs: Option<Value>,
    // Who made it, and with which kernels others run it.
    #[serde(rename = "model_name_or_path")]
    _model_name: Option<Value>,
    #[serde(rename = "model_file_base_name")]
    _file_name: Option<Value>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
    #[serde(rename = "backend")]
    _backend: Option<Value>,
    #[serde(rename = "exllama_config")]
    _exllama_config: Option<Value>,
    #[serde(rename = "use_exllama")]
    _use_exllama: Option<Value>,
    #[serde(rename = "disable_exllama")]
    _disable_exllama: Option<Value>,
    #[serde(rename = "use_cuda_fp16")]
    _use_cuda_fp16: Option<Value>,
    #[serde(rename = "max_input_length")]
    _max_input_length: Option<Value>,
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
        let parts = Parts { bits: self.bits, packing, group_size: self.group_size, is_in_order: !self.desc_act };
        ColumnInts::open(file, module, parts)
    }
}

fn read(value: &Value) -> Result<GptqConfig, Fault> {
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    if !matches!(stored.bits, 2 | 3 | 4 | 8) {
        return unsupported(format!("`bits` {} is not supported", stored.bits));
    }
    let is_v2 = match stored.checkpoint_format.as_deref() {
        None | Some("gptq") => false,
        Some("gptq_v2") => true,
        Some(other) => return unsupported(format!("`checkpoint_format` {} is not supported", Name(other))),
    };
    match stored.pack_dtype.as_deref() {
        None | Some("int32") => {}
        Some(other) => return unsupported(format!("`pack_dtype` {} is not supported", Name(other))),
    }
    if stored.is_marlin_format == Some(true) {
        return unsupported("`is_marlin_format` is not supported".to_owned());
    }
    let is_given = |value: &Value| !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty());
    for (key, value) in [("dynamic", &stored.dynamic), ("adapter", &stored.adapter), ("rotation", &stored.rotation)] {
        if value.as_ref().is_some_and(is_given) {
            return unsupported(format!("`{key}` is not supported"));
        }
    }
    Ok(GptqConfig { bits: stored.bits, group_size: group_size(stored.group_size)?, desc_act: stored.desc_act, is_v2 })
}

/// −1 stands for all inputs.
pub(crate) fn group_size(stored: i64) -> Result<Option<usize>, Fault> {
    match usize::try_from(stored) {
        Ok(size) if size > 0 => Ok(Some(size)),
        _ if stored == -1 => Ok(None),
        _ => Err(Fault::Malformed(format!("`group_size` is {stored}, must be above 0, or -1"))),
    }
}
