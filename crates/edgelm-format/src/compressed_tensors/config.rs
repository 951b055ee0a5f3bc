//! `quantization_config`: what is quantized, and how.

use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
    fp8::Fp8Config,
};
use edgelm_tensor::IntFormat;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// The whole of it.
#[derive(Debug, Clone, PartialEq)]
pub struct IntQuantization {
    /// In the order of their names.
    pub groups: Vec<Group>,
    /// Modules that are left as they are.
    pub ignore: Vec<String>,
    /// Classes or names of modules of which two of every four weights are stored (`sparse-24-bitmask`), floats or `int-quantized`.
    pub sparse: Vec<String>,
}

/// Modules that are stored alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Classes (`Linear`, `Embedding`) or names of modules.
    pub targets: Vec<String>,
    /// What the quants mean.
    pub format: IntFormat,
    /// What shares a scale.
    pub strategy: Strategy,
    /// What happens to inputs.
    pub activations: Activations,
    /// How quants are stored.
    pub packing: Packing,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The whole matrix.
    Tensor,
    /// Each row.
    Channel,
    /// Each run of so many values of a row.
    Group(usize),
}

/// How the inputs of a layer are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// As the engine likes.
    Any,
    /// To int8, with scales that follow the values.
    Dynamic,
    /// To int8, with one scale per layer that calibration found.
    Static,
}

/// How quants are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// `pack-quantized`.
    Words,
    /// `int-quantized`.
    Bytes,
}

/// `pack-quantized` of two of every four quants.
const PACKED_24: &str = "edgelm-pack-quantized-24";

/// e4m3 with scales.
const FLOATS: &str = "float-quantized";

/// `sparsity_config` in these words.
const BITMASK_24: &str = "sparse-24-bitmask";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "quant_method")]
    _method: String,
    format: Option<String>,
    #[serde(default)]
    config_groups: BTreeMap<String, StoredGroup>,
    #[serde(default)]
    ignore: Option<Vec<String>>,
    kv_cache_scheme: Option<Value>,
    sparsity_config: Option<StoredSparsity>,
    transform_config: Option<Value>,
    moe_sparsity_config: Option<Value>,
    #[serde(rename = "quantization_status")]
    _status: Option<String>,
    #[serde(rename = "global_compression_ratio")]
    _ratio: Option<Value>,
    #[serde(rename = "version")]
    _version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSparsity {
    format: Option<String>,
    sparsity_structure: Option<String>,
    targets: Option<Vec<String>>,
    // Modules whose weights are stored as usual show that themselves.
    #[serde(rename = "ignore")]
    _ignore: Option<Vec<String>>,
    #[serde(rename = "global_sparsity")]
    _global_sparsity: Option<f64>,
    #[serde(rename = "registry_requires_subclass")]
    _registry: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredGroup {
    targets: Vec<String>,
    weights: Option<Arguments>,
    input_activations: Option<Arguments>,
    output_activations: Option<Value>,
    format: Option<String>,
}

/// Of weights or activations. What cannot change the meaning of what is stored has an underscore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    num_bits: u32,
    #[serde(rename = "type", default = "int")]
    kind: String,
    #[serde(default = "yes")]
    symmetric: bool,
    group_size: Option<i64>,
    strategy: Option<String>,
    #[serde(default)]
    dynamic: Value,
    actorder: Option<Value>,
    block_structure: Option<Value>,
    #[serde(rename = "observer")]
    _observer: Option<Value>,
    #[serde(rename = "observer_kwargs")]
    _observer_kwargs: Option<Value>,
    #[serde(rename = "scale_dtype")]
    _scale_dtype: Option<Value>,
    #[serde(rename = "zp_dtype")]
    _zp_dtype: Option<Value>,
}

fn int() -> String {
    "int".to_owned()
}

fn yes() -> bool {
    true
}

fn unsupported<T>(what: String) -> Result<T, Fault> {
    Err(Fault::Unsupported(what))
}

impl IntQuantization {
    /// From the value of `quantization_config`. Errors name the key; `path` is that of config.json.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, FormatError> {
        read(value).map_err(|fault| fault.within("`quantization_config`").at(path))
    }

    /// The value for config.json.
    pub fn to_json(&self) -> Value {
        let names: Vec<&str> = self.groups.iter().map(Group::format_name).collect();
        let format = match names[..] {
            [] => "dense",
            [first, ..] if names.iter().all(|name| *name == first) => first,
            _ => "mixed-precision",
        };
        let groups: serde_json::Map<String, Value> =
            self.groups.iter().enumerate().map(|(index, group)| (format!("group_{index}"), group.to_json())).collect();
        let mut out = json!({
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": self.ignore,
            "kv_cache_scheme": null,
        });
        if !self.sparse.is_empty() {
            out["sparsity_config"] = json!({
                "format": BITMASK_24, "sparsity_structure": "2:4", "targets": self.sparse, "ignore": self.ignore,
            });
        }
        out
    }

    /// The group of a module of a class: one that names it, else one that names its class, else the only one.
    pub fn group_of(&self, module: &str, class: &str) -> Option<&Group> {
        let named = |wanted: &str| self.groups.iter().find(|group| group.targets.iter().any(|target| target == wanted));
        let only = || if let [only] = &self.groups[..] { Some(only) } else { None };
        named(module).or_else(|| named(class)).or_else(only)
    }
}

impl Group {
    fn format_name(&self) -> &'static str {
        match self.packing {
            Packing::Words if self.format.is_sparse() => PACKED_24,
            Packing::Words => "pack-quantized",
            Packing::Bytes => "int-quantized",
        }
    }

    fn to_json(&self) -> Value {
        let (strategy, group_size) = match self.strategy {
            Strategy::Tensor => ("tensor", None),
            Strategy::Channel => ("channel", None),
            Strategy::Group(size) => ("group", Some(size)),
        };
        let input = |strategy: &str, is_dynamic: bool| {
            json!({
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": strategy, "group_size": null,
                "dynamic": is_dynamic, "observer": if is_dynamic { Value::Null } else { "minmax".into() },
            })
        };
        json!({
            "targets": self.targets,
            "weights": {
                "num_bits": self.format.bits(), "type": "int", "symmetric": self.format.is_symmetric(),
                "strategy": strategy, "group_size": group_size, "dynamic": false, "observer": "minmax",
            },
            "input_activations": match self.activations {
                Activations::Any => Value::Null,
                Activations::Dynamic => input("token", true),
                Activations::Static => input("tensor", false),
            },
            "output_activations": null,
            "format": self.format_name(),
        })
    }
}

/// What holds for weights of every kind.
fn read_stored(value: &Value) -> Result<Stored, Fault> {
    let method = value.get("quant_method").and_then(Value::as_str);
    if method != Some("compressed-tensors") {
        let method = method.unwrap_or("none");
        return unsupported(format!("`quant_method` {} is not supported yet", Name(method)));
    }
    let stored = Stored::deserialize(value).map_err(|error| Fault::Malformed(error.to_string()))?;
    let is_empty = |value: &Option<Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty() || map.get("format").is_some_and(|format| format == "dense"),
        _ => false,
    };
    for (key, value) in [
        ("kv_cache_scheme", &stored.kv_cache_scheme),
        ("transform_config", &stored.transform_config),
        ("moe_sparsity_config", &stored.moe_sparsity_config),
    ] {
        if !is_empty(value) {
            return unsupported(format!("`{key}` is not supported"));
        }
    }
    Ok(stored)
}

/// True if weights are eight-bit floats (`float-quantized`), which `fp8` reads.
pub fn is_of_floats(value: &Value) -> bool {
    value.get("format").and_then(Value::as_str) == Some(FLOATS)
}

/// What shares a scale of eight-bit floats. Errors name the key; `path` is that of config.json.
pub fn float_config(value: &Value, path: &Path) -> Result<Fp8Config, FormatError> {
    read_floats(value).map_err(|fault| fault.within("`quantization_config`").at(path))
}

fn read_floats(value: &Value) -> Result<Fp8Config, Fault> {
    let stored = read_stored(value)?;
    if !read_sparsity(stored.sparsity_config.unwrap_or_default())?.is_empty() {
        return unsupported("floats of eight bits that are sparse are not supported".to_owned());
    }
    let mut found = None;
    for (name, group) in stored.config_groups {
        let place = |fault: Fault| fault.within(format_args!("group {}", Name(&name)));
        let config = read_float_group(group).map_err(place)?;
        if found.is_some_and(|found| found != config) {
            return unsupported("groups with different blocks of floats are not supported".to_owned());
        }
        found = Some(config);
    }
    found.map_or_else(|| malformed!("`config_groups` is empty"), Ok)
}

fn read_float_group(group: StoredGroup) -> Result<Fp8Config, Fault> {
    if group.format.is_some_and(|format| format != FLOATS) {
        return unsupported("groups of floats and of others are not supported".to_owned());
    }
    let Some(weights) = group.weights else { return malformed!("has no `weights`") };
    if weights.kind != "float" || weights.num_bits != 8 || !weights.symmetric {
        let kind = Name(&weights.kind);
        return unsupported(format!("weights of type {kind} and {} bits are not supported", weights.num_bits));
    }
    let numbers = |value: &Value| -> Option<[usize; 2]> { Deserialize::deserialize(value).ok() };
    match (weights.strategy.as_deref(), weights.block_structure.as_ref().and_then(numbers)) {
        (Some("tensor" | "channel"), _) => Ok(Fp8Config { block: None }),
        (Some("block"), Some([rows, columns])) if rows > 0 && columns > 0 => {
            Ok(Fp8Config { block: Some([rows, columns]) })
        }
        (strategy, _) => {
            let strategy = Name(strategy.unwrap_or("none"));
            unsupported(format!("strategy {strategy} of floats is not supported"))
        }
    }
}

fn read(value: &Value) -> Result<IntQuantization, Fault> {
    let stored = read_stored(value)?;
    let sparsity = |fault: Fault| fault.within("`sparsity_config`");
    let sparse = read_sparsity(stored.sparsity_config.unwrap_or_default()).map_err(sparsity)?;
    let mut groups = Vec::new();
    for (name, group) in stored.config_groups {
        let place = |fault: Fault| fault.within(format_args!("group {}", Name(&name)));
        groups.push(read_group(group, stored.format.as_deref(), !sparse.is_empty()).map_err(place)?);
    }
    if groups.is_empty() && sparse.is_empty() {
        return malformed!("`config_groups` is empty");
    }
    Ok(IntQuantization { groups, ignore: stored.ignore.unwrap_or_default(), sparse })
}

/// The modules of which two of every four weights are stored.
fn read_sparsity(stored: StoredSparsity) -> Result<Vec<String>, Fault> {
    match (stored.format.as_deref(), stored.sparsity_structure.as_deref()) {
        (None | Some("dense"), _) => Ok(Vec::new()),
        (Some(BITMASK_24), None | Some("2:4")) => Ok(stored.targets.unwrap_or_else(|| vec!["Linear".to_owned()])),
        (Some(BITMASK_24), Some(other)) => unsupported(format!("structure {} is not supported", Name(other))),
        (Some(other), _) => unsupported(format!("format {} is not supported", Name(other))),
    }
}

/// `has_sparse`: of some modules two of every four weights are stored. Which they are, their tensors show.
fn read_group(group: StoredGroup, format: Option<&str>, has_sparse: bool) -> Result<Group, Fault> {
    if let Some(pattern) = group.targets.iter().find(|target| target.starts_with("re:")) {
        return unsupported(format!("target {}: patterns are not supported", Name(pattern)));
    }
    if group.output_activations.is_some_and(|value| !value.is_null()) {
        return unsupported("`output_activations` are not supported".to_owned());
    }
    let (packing, is_sparse) = match group.format.as_deref().or(format) {
        Some("pack-quantized") => (Packing::Words, false),
        Some(PACKED_24) => (Packing::Words, true),
        Some("int-quantized") => (Packing::Bytes, has_sparse),
        other => return unsupported(format!("format {} is not supported", Name(other.unwrap_or("none")))),
    };
    let Some(weights) = group.weights else { return unsupported("weights without quantization".to_owned()) };
    if weights.kind != "int" {
        return unsupported(format!("weights of type {} are not supported", Name(&weights.kind)));
    }
    for (key, value) in [("actorder", &weights.actorder), ("block_structure", &weights.block_structure)] {
        // Static activation order leaves the columns where they are.
        if value.as_ref().is_some_and(|value| !value.is_null() && value != "static" && value != "weight") {
            return unsupported(format!("weights with `{key}` are not supported"));
        }
    }
    let Some(format) = IntFormat::new(weights.num_bits, weights.symmetric) else {
        let kind = if weights.symmetric { "symmetric" } else { "asymmetric" };
        return unsupported(format!("{kind} weights of {} bits are not supported", weights.num_bits));
    };
    let format = match (is_sparse, format.sparse()) {
        (false, _) => format,
        (true, Some(sparse)) => sparse,
        (true, None) if packing == Packing::Bytes => format,
        (true, None) => return unsupported("asymmetric weights that are sparse are not supported".to_owned()),
    };
    let strategy = match (weights.strategy.as_deref(), weights.group_size) {
        (Some("tensor"), _) | (None, None) => Strategy::Tensor,
        (Some("channel"), _) | (None, Some(-1)) => Strategy::Channel,
        (Some("group") | None, Some(size)) if size > 0 => Strategy::Group(size as usize),
        (strategy, size) => {
            let strategy = Name(strategy.unwrap_or("none"));
            return unsupported(format!("strategy {strategy} with group size {size:?} is not supported"));
        }
    };
    let activations = match group.input_activations {
        None => Activations::Any,
        Some(input) if input.num_bits != 8 || input.kind != "int" || !input.symmetric => {
            return unsupported("activations that are not symmetric int8 are not supported".to_owned());
        }
        Some(input) => match (&input.dynamic, input.strategy.as_deref()) {
            (Value::Bool(true), _) => Activations::Dynamic,
            (Value::Bool(false) | Value::Null, Some("tensor") | None) => Activations::Static,
            (_, strategy) => {
                let strategy = Name(strategy.unwrap_or("none"));
                return unsupported(format!("activations of strategy {strategy} are not supported"));
            }
        },
    };
    Ok(Group { targets: group.targets, format, strategy, activations, packing })
}
