//! From what the user wrote as MODEL to a checkpoint.

use crate::{options::Global, progress};
use anyhow::{Context, bail};
use edgelm_fleet::hub;
use edgelm_model::{Checkpoint, Embedded, Texts};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The small model compiled into the binary.
const DEMO: Embedded = &[
    ("config.json", include_bytes!("../assets/mica-5m/config.json")),
    ("generation_config.json", include_bytes!("../assets/mica-5m/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/mica-5m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/mica-5m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/mica-5m/tokenizer_config.json")),
];

/// Opens MODEL: a folder, a `.gguf` file, `hf.co/…` or `demo`.
pub fn checkpoint(model: &str, global: &Global) -> anyhow::Result<Arc<Checkpoint>> {
    let checkpoint = if model == "demo" {
        Checkpoint::open_embedded("demo", DEMO)?
    } else {
        Checkpoint::open(&path(model, global)?)?
    };
    Ok(Arc::new(checkpoint))
}

/// Opens only the text side of MODEL: no weights and no config are needed.
pub fn texts(model: &str, global: &Global) -> anyhow::Result<Texts> {
    if model == "demo" {
        return Ok(Texts::open_embedded("demo", DEMO));
    }
    Ok(Texts::open(&path(model, global)?)?)
}

/// The file or folder that MODEL means, downloaded if need be.
fn path(model: &str, global: &Global) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if hub::Reference::is_one(model) {
        return Ok(pull(model, global)?.path);
    }
    if model.starts_with("oci://") {
        bail!("`{model}`: OCI registries are not supported by this version");
    }
    bail!("`{model}`: no such file or folder (and not `demo` or `hf.co/org/name`)");
}

/// Downloads a model, or finds it in the cache.
pub fn pull(reference: &str, global: &Global) -> anyhow::Result<hub::Pulled> {
    let parsed: hub::Reference = reference.parse()?;
    let settings = hub::Settings::from_env()?;
    let bar = progress::byte_bar("pull", global.quiet);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = |event: hub::Progress<'_>| {
        bar.set_length(event.total_bytes);
        bar.set_position(event.done_bytes);
        bar.set_message(event.file.to_owned());
    };
    let pulled = runtime.block_on(hub::pull(&parsed, &settings, &mut report));
    bar.finish_and_clear();
    pulled.with_context(|| format!("cannot pull `{reference}`"))
}
