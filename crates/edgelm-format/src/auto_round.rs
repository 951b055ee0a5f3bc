//! AutoRound checkpoints in its own format: `quantization_config` with `quant_method` `auto-round`, tensors as GPTQ or AWQ
//! files have them (Cheng et al. 2024, arXiv:2309.05516).
//!
//! `packing_format` says how: with `awq` in its name as [`awq`](crate::awq), with `gptq` as [`gptq`](crate::gptq) with zeros less
//! one, else, and with `gptqmodel`, with zeros as they are. Modules of which `extra_config` says something of their own show it in
//! the shapes of their tensors.
//!
//! Source: AutoRound 0.16.1. Where this reader is narrower, it says so by name: floats (`data_type`), inputs that are rounded
//! (`act_bits`), scales of scales (`super_bits`), rotations, rounded caches.

use crate::{
    FormatError,
    awq::AwqConfig,
    fault::{Fault, Name, malformed},
    gptq::{self, GptqConfig},
    quantizer_keys::Keys,
};
use serde_json::Value;
use std::path::Path;

/// Bits from which on a module is not quantized.
const WHOLE: u64 = 16;

/// As what its tensors are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AutoRoundConfig {
    Gptq(GptqConfig),
    Awq(AwqConfig),
}

impl AutoRoundConfig {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }
}

fn read(value: &Value) -> Result<AutoRoundConfig, Fault> {
    let mut keys = Keys::new(value)?;
    check_scheme(&mut keys)?;
    for key in ["super_bits", "super_group_size", "rotation_config", "rotation_configs"] {
        keys.refuse(key)?;
    }
    for key in ["static_kv_dtype", "static_attention_dtype"] {
        keys.refuse(key)?;
    }
    let mut varies = false;
    if let Some(modules) = keys.get(&["extra_config"])? {
        let Some(modules) = modules.as_object() else { return malformed!("`extra_config` must be an object") };
        for (module, scheme) in modules {
            varies = true;
            let place = |fault: Fault| fault.within(format_args!("`extra_config`, {}", Name(module)));
            if scheme.get("bits").and_then(Value::as_u64).is_some_and(|bits| bits >= WHOLE) {
                continue;
            }
            Keys::new(scheme).and_then(|mut keys| check_scheme(&mut keys)).map_err(place)?;
        }
    }
    let packing = keys.text(&["packing_format"])?.unwrap_or("auto_round:auto_gptq");
    let group_size = keys.group_size(&["group_size"])?;
    let config = if !packing.contains("auto_round") {
        return Err(Fault::Unsupported(format!("`packing_format` {} is not supported", Name(packing))));
    } else if packing.contains("awq") {
        keys.bits(&["bits"], &[4])?;
        AutoRoundConfig::Awq(AwqConfig { group_size })
    } else {
        let bits = keys.bits(&["bits"], &gptq::BITS)?;
        let is_v2 = !packing.contains("gptq") || packing.contains("gptqmodel");
        AutoRoundConfig::Gptq(GptqConfig { bits, group_size, desc_act: false, is_v2, varies })
    };
    keys.finish()?;
    Ok(config)
}

/// What may be said of all modules, and of one: whole numbers, of weights alone.
fn check_scheme(keys: &mut Keys<'_>) -> Result<(), Fault> {
    if let Some(other) = keys.text(&["data_type"])?.filter(|kind| !matches!(*kind, "int" | "int_sym" | "int_asym")) {
        return Err(Fault::Unsupported(format!("`data_type` {} is not supported", Name(other))));
    }
    if let Some(bits) = keys.get(&["act_bits"])?
        && bits.as_u64().is_none_or(|bits| bits < WHOLE)
    {
        return Err(Fault::Unsupported(format!("`act_bits` {bits} is not supported")));
    }
    keys.get(&["act_data_type"])?;
    keys.get(&["act_group_size"])?;
    keys.get(&["act_sym"])?;
    keys.get(&["act_dynamic"])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn config(extra: Value) -> Result<AutoRoundConfig, String> {
        let mut value = json!({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": true, "iters": 5,
            "amp": false, "autoround_version": "0.16.1", "block_name_to_quantize": "model.layers", "data_type": "int"});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        AutoRoundConfig::from_json(&value, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn packings_are_told_apart() {
        let gptq = |is_v2, varies| {
            let group_size = Some(128);
            Ok(AutoRoundConfig::Gptq(GptqConfig { bits: 4, group_size, desc_act: false, is_v2, varies }))
        };
        assert_eq!(config(json!({"packing_format": "auto_round:auto_gptq"})), gptq(false, false));
        assert_eq!(config(json!({"packing_format": "auto_round:gptqmodel"})), gptq(true, false));
        assert_eq!(config(json!({"packing_format": "auto_round:exllamav2"})), gptq(true, false));
        let awq = config(json!({"packing_format": "auto_round:auto_awq", "group_size": 64}));
        assert_eq!(awq, Ok(AutoRoundConfig::Awq(AwqConfig { group_size: Some(64) })));
        let own = json!({"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}, "lm_head": {"bits": 16}}});
        assert_eq!(config(own), gptq(false, true));
    }

    #[test]
    fn what_is_not_read_is_named() {
        for (extra, name) in [
            (json!({"data_type": "mx_fp"}), "data_type"),
            (json!({"act_bits": 8}), "act_bits"),
            (json!({"packing_format": "gguf"}), "packing_format"),
            (json!({"rotation_configs": [{"kind": "hadamard"}]}), "rotation_configs"),
            (json!({"extra_config": {"lm_head": {"bits": 4, "data_type": "nv_fp"}}}), "lm_head"),
            (json!({"bits": 5}), "bits"),
            (json!({"surprise": 1}), "surprise"),
        ] {
            let error = config(extra).unwrap_err();
            assert!(error.contains("quantization_config") && error.contains(name), "{name}: {error}");
        }
    }
}
