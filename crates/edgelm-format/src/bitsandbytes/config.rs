//! `quantization_config`.

use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
};
use edgelm_tensor::LookupFormat;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// What it says of a folder. Each matrix says the rest itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// `load_in_4bit`.
    FourBit(FourBitConfig),
    /// `load_in_8bit`.
    EightBit,
}

/// What it says of weights of 4 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FourBitConfig {
    /// What codes mean.
    pub format: LookupFormat,
    /// Linear layers that are left as they are.
    pub skipped: Vec<String>,
}

/// What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method")]
    _method: String,
    #[serde(default)]
    load_in_4bit: bool,
    #[serde(default)]
    load_in_8bit: bool,
    #[serde(default = "fp4")]
    bnb_4bit_quant_type: String,
    bnb_4bit_quant_storage: Option<String>,
    #[serde(rename = "bnb_4bit_compute_dtype")]
    _compute_dtype: Option<Value>,
    #[serde(rename = "bnb_4bit_use_double_quant")]
    _use_double_quant: Option<Value>,
    llm_int8_skip_modules: Option<Vec<String>>,
    #[serde(rename = "llm_int8_threshold")]
    _threshold: Option<Value>,
    #[serde(rename = "llm_int8_enable_fp32_cpu_offload")]
    _cpu_offload: Option<Value>,
    #[serde(rename = "llm_int8_has_fp16_weight")]
    _fp16_weight: Option<Value>,
    #[serde(rename = "_load_in_4bit")]
    _private_4bit: Option<Value>,
    #[serde(rename = "_load_in_8bit")]
    _private_8bit: Option<Value>,
}

fn fp4() -> String {
    "fp4".to_owned()
}

impl Config {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }
}

impl FourBitConfig {
    /// The value for config.json.
    pub fn to_json(&self) -> Value {
        json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_quant_type": self.format.name(),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_use_double_quant": false,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.skipped,
            "llm_int8_threshold": 6.0,
        })
    }
}

fn read(value: &Value) -> Result<Config, Fault> {
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    let unsupported = |what: String| Err(Fault::Unsupported(what));
    match (stored.load_in_4bit, stored.load_in_8bit) {
        (true, false) => {}
        (false, true) => return Ok(Config::EightBit),
        _ => return malformed!("neither or both of `load_in_4bit` and `load_in_8bit` are true"),
    }
    match stored.bnb_4bit_quant_storage.as_deref() {
        None | Some("uint8" | "torch.uint8") => {}
        Some(other) => return unsupported(format!("`bnb_4bit_quant_storage` {} is not supported", Name(other))),
    }
    let Some(format) = LookupFormat::from_name(&stored.bnb_4bit_quant_type) else {
        return unsupported(format!("`bnb_4bit_quant_type` {} is not supported", Name(&stored.bnb_4bit_quant_type)));
    };
    Ok(Config::FourBit(FourBitConfig { format, skipped: stored.llm_int8_skip_modules.unwrap_or_default() }))
}
