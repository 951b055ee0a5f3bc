//! Adapters as GGUF files, as llama.cpp has them: `general.type` is `adapter`, tensors end in `.lora_a` and `.lora_b`.

use super::{
    Adapter,
    target::{Module, Targets},
    values,
};
use crate::{Checkpoint, ModelError};
use edgelm_format::gguf::{GgufFile, Value};
use std::path::Path;

pub(super) fn open(path: &Path, model: &Checkpoint) -> Result<Adapter, ModelError> {
    let file = GgufFile::open(path)?;
    let fail = |what: String| ModelError::Config { path: path.to_owned(), what };
    let find = |key: &str| file.metadata().iter().find(|(name, _)| name == key).map(|(_, value)| value);
    for (key, want) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        if find(key).and_then(Value::as_str) != Some(want) {
            return Err(fail(format!("key `{key}` must be `{want}` in the file of an adapter")));
        }
    }
    let form = model.gguf_form();
    let arch = form.config().arch;
    if let Some(name) = find("general.architecture").and_then(Value::as_str)
        && arch.gguf_name != Some(name)
    {
        return Err(fail(format!("is an adapter for architecture `{name}`, the model is `{}`", arch.name)));
    }
    let alpha = find("adapter.lora.alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
    let targets = Targets::new(model, &arch.gguf_names, arch.gguf_rope_pairs);
    let mut adapter = Adapter::default();
    for name in file.names() {
        let Some(module) = name.strip_suffix(".lora_a") else {
            match name.strip_suffix(".lora_b") {
                Some(module) if file.info(&format!("{module}.lora_a")).is_some() => continue,
                _ => return Err(fail(format!("unexpected tensor `{name}`"))),
            }
        };
        let [rows, columns] = targets.shape(module, path)?;
        let get = |name: &str| -> Result<_, ModelError> {
            file.get(name)?.ok_or_else(|| fail(format!("tensor `{name}` is missing")))
        };
        let view = get(name)?;
        let rank = view.shape.first().copied().unwrap_or(0).max(1);
        let a = values(name, &view, &[rank, columns])?;
        let other = format!("{module}.lora_b");
        let b = values(&other, &get(&other)?, &[rows, rank])?;
        // Without α llama.cpp takes B·A as it is.
        let scale = alpha.filter(|alpha| *alpha != 0.0).map_or(1.0, |alpha| alpha / rank as f64) as f32;
        targets.put(&mut adapter, Module { name: module.to_owned(), rank, a, b, scale, magnitude: None });
    }
    if let Some(id) = adapter.lora.keys().find(|id| form.is_changed(**id)) {
        let name = arch.gguf_tensor_name(*id);
        let what = "which GGUF files hold otherwise than this folder: open the model as a file";
        return Err(fail(format!("changes `{name}`, {what}")));
    }
    Ok(adapter)
}
