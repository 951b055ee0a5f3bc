//! `--lora`: adapters by their paths.

use anyhow::Context;
use edgelm_engine::{Engine, LoadedAdapter};
use edgelm_model::{Adapter, Checkpoint};
use std::{path::PathBuf, sync::Arc};

/// Reads adapters for a model.
pub fn open(paths: &[PathBuf], checkpoint: &Checkpoint) -> anyhow::Result<Vec<Adapter>> {
    let open = |path: &PathBuf| {
        Adapter::open(path, checkpoint).with_context(|| format!("cannot use the adapter `{}`", path.display()))
    };
    paths.iter().map(open).collect()
}

/// Prepares those that are used together; none where there are no paths.
pub fn load(paths: &[PathBuf], engine: &Engine) -> anyhow::Result<Option<Arc<LoadedAdapter>>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let adapters = open(paths, engine.checkpoint())?;
    Ok(Some(Arc::new(LoadedAdapter::load(engine, &adapters)?)))
}
