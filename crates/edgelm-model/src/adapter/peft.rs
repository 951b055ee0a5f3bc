//! Folders of PEFT: adapter_config.json and adapter_model.safetensors.

use super::{
    Adapter, AdaptionPrompt,
    target::{Module, Targets},
    values,
};
use crate::{
    Checkpoint, ModelError, StorageKind,
    config::{Keys, parse_object},
};
use edgelm_format::{FormatError, Source, safetensors::SafeTensors};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::Path};

/// Keys that say nothing about what the adapter computes here.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// What every tensor's name begins with.
const PREFIX: &str = "base_model.model.";

/// A configuration is a few hundred bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

pub(super) fn open(folder: &Path, model: &Checkpoint) -> Result<Adapter, ModelError> {
    let path = folder.join("adapter_config.json");
    let failed = |source| FormatError::Io { path: path.clone(), action: "reading", source };
    if std::fs::metadata(&path).map_err(failed)?.len() > MAX_CONFIG_BYTES {
        return Err(ModelError::Config { path, what: "is too long for the configuration of an adapter".to_owned() });
    }
    let map = parse_object(&std::fs::read(&path).map_err(failed)?, &path)?;
    let weights = folder.join("adapter_model.safetensors");
    if !weights.exists() {
        let what = "no `adapter_model.safetensors` here".to_owned();
        return Err(ModelError::Config { path: folder.to_owned(), what });
    }
    let file = SafeTensors::from_sources(vec![Source::open(&weights)?])?;
    let mut keys = Keys::new(&path, "", &map);
    match keys.text("peft_type")? {
        Some("LORA") => lora(keys, &map, &file, &weights, model),
        Some("ADAPTION_PROMPT") => prompts(keys, &map, &file, &weights, model),
        _ => Err(keys.bad("peft_type", "this kind of adapter is not supported; supported: LORA, ADAPTION_PROMPT")),
    }
}

/// Every key that was not read is harmless, or says "not this".
fn finish(keys: Keys<'_>, map: &Map<String, Value>) -> Result<(), ModelError> {
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let off: Vec<&str> = map.iter().filter(|(_, value)| is_off(value)).map(|(key, _)| key.as_str()).collect();
    keys.finish(&[HARMLESS, &off])
}

fn lora(
    mut keys: Keys<'_>,
    map: &Map<String, Value>,
    file: &SafeTensors,
    path: &Path,
    model: &Checkpoint,
) -> Result<Adapter, ModelError> {
    let alpha = keys.positive("lora_alpha")?.unwrap_or(8.0);
    let patterns = read_patterns(&mut keys)?;
    let stable = keys.flag("use_rslora")?.unwrap_or(false);
    let with_magnitude = keys.flag("use_dora")?.unwrap_or(false);
    // A matrix stored [in, out] has the same A and B.
    keys.flag("fan_in_fan_out")?;
    if keys.text("bias")?.is_some_and(|bias| bias != "none") {
        return Err(keys.bad("bias", "only `none` is supported"));
    }
    // Ranks are those of the tensors.
    keys.get("rank_pattern");
    finish(keys, map)?;

    let arch = model.config().arch;
    let targets = Targets::new(model, &arch.hf_names, arch.hf_rope_pairs);
    let fail = |what: String| ModelError::Config { path: path.to_owned(), what };
    let mut modules: BTreeMap<String, [Option<&str>; 3]> = BTreeMap::new();
    let mut adapter = Adapter::default();
    for name in file.names() {
        let inner = name.strip_prefix(PREFIX).ok_or_else(|| fail(format!("unexpected tensor `{name}`")))?;
        let inner = inner.replace(".default", "").replace(".modules_to_save", "");
        let parts = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];
        let part = parts.iter().enumerate().find_map(|(part, end)| Some((part, inner.strip_suffix(end)?)));
        match part {
            Some((part, module)) => {
                modules.entry(module.to_owned()).or_default()[part] = Some(name);
            }
            None => {
                let [rows, columns] = targets.shape(&inner, path)?;
                let view = file.get(name)?.ok_or_else(|| fail(format!("tensor `{name}` is missing")))?;
                targets.replace(&mut adapter, &inner, &values(name, &view, &[rows, columns])?);
            }
        }
    }
    for (module, parts) in modules {
        let read = |part: usize, shape: &dyn Fn(&[usize]) -> Vec<usize>| -> Result<Vec<f32>, ModelError> {
            let name =
                parts[part].ok_or_else(|| fail(format!("`{module}` has no {}", ["A", "B", "magnitude"][part])))?;
            let view = file.get(name)?.ok_or_else(|| fail(format!("tensor `{name}` is missing")))?;
            values(name, &view, &shape(view.shape))
        };
        let name = format!("{module}.weight");
        let [rows, columns] = targets.shape(&name, path)?;
        let rank = |shape: &[usize]| shape.first().copied().unwrap_or(0).max(1);
        let a = read(0, &|shape| vec![rank(shape), columns])?;
        let rank = a.len() / columns.max(1);
        let b = read(1, &|_| vec![rows, rank])?;
        let magnitude = with_magnitude.then(|| read(2, &|_| vec![rows])).transpose()?;
        let alpha = patterns.iter().find(|(key, _)| is_of(&module, key)).map_or(alpha, |(_, alpha)| *alpha);
        let scale = if stable { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
        targets.put(&mut adapter, Module { name, rank, a, b, scale: scale as f32, magnitude });
    }
    if model.storage() == StorageKind::Gguf
        && let Some(id) =
            adapter.lora.keys().chain(adapter.replaced.keys()).find(|id| model.config().is_converted(**id))
    {
        let name = arch.hf_tensor_name(*id);
        return Err(fail(format!("changes `{name}`, which GGUF files hold otherwise: open the model's folder")));
    }
    Ok(adapter)
}

/// `alpha_pattern`: α of modules by the end of their names. PEFT takes these for regular expressions; plain names are what
/// it writes.
fn read_patterns(keys: &mut Keys<'_>) -> Result<Vec<(String, f64)>, ModelError> {
    let Some(value) = keys.get("alpha_pattern") else { return Ok(Vec::new()) };
    let map = value.as_object().ok_or_else(|| keys.bad("alpha_pattern", "must be an object"))?;
    let is_plain = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    map.iter()
        .map(|(key, value)| match value.as_f64().filter(|alpha| alpha.is_finite() && is_plain(key)) {
            Some(alpha) => Ok((key.clone(), alpha)),
            None => Err(keys.bad("alpha_pattern", "must have plain names and numbers")),
        })
        .collect()
}

fn is_of(module: &str, key: &str) -> bool {
    module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn prompts(
    mut keys: Keys<'_>,
    map: &Map<String, Value>,
    file: &SafeTensors,
    path: &Path,
    model: &Checkpoint,
) -> Result<Adapter, ModelError> {
    let config = model.config();
    let length = keys.required_size("adapter_len", config.max_position_embeddings)?;
    let layers = keys.required_size("adapter_layers", config.layers.len())?;
    finish(keys, map)?;
    let mut adapter = Adapter::default();
    let mut expected = 0;
    for layer in config.layers.len() - layers..config.layers.len() {
        let attention = format!("{PREFIX}model.layers.{layer}.self_attn");
        let read = |part: &str, shape: &[usize]| -> Result<Vec<f32>, ModelError> {
            let name = format!("{attention}.{part}");
            let missing = || ModelError::MissingTensor { path: path.to_owned(), name: name.clone() };
            values(&name, &file.get(&name)?.ok_or_else(missing)?, shape)
        };
        let prompt = read("adaption_prompt", &[1, length, config.hidden_size])?;
        let gate = read("adaption_gate", &[1])?.first().copied().unwrap_or_default();
        adapter.prompts.insert(layer, AdaptionPrompt { prompt, gate });
        expected += 2;
    }
    match file.names().count() == expected {
        true => Ok(adapter),
        false => {
            let what = format!("holds more than the prompts of the last {layers} layers");
            Err(ModelError::Config { path: path.to_owned(), what })
        }
    }
}
