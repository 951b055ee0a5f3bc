//! Adapters folded into the weights they change.

use crate::{
    CompressError, OnTensor, go_on,
    output::{Output, stored_dtype},
};
use edgelm_model::{Adapter, Checkpoint, Edited, Replaced};
use std::path::Path;

/// What was folded in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeReport {
    /// Matrices that are others now.
    pub changed: usize,
    /// Weight files before.
    pub input_bytes: u64,
    /// Weight file now.
    pub output_bytes: u64,
}

/// Writes the model with `adapters` folded in, one after another, to a `.gguf` file or a folder. Tensors keep their float
/// format; those that were quantized become F16.
///
/// Errors on adapters that no weights can hold (learned positions); `on_step` sees tensors done and may stop the work.
pub fn merge(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    output: &Path,
    on_step: &mut OnTensor<'_>,
) -> Result<MergeReport, CompressError> {
    if adapters.iter().any(|adapter| !adapter.prompts.is_empty()) {
        let problem = "learned positions cannot be folded into weights".to_owned();
        return Err(CompressError::Setting { what: "--lora", value: "ADAPTION_PROMPT".to_owned(), problem });
    }
    let mut edited = Edited::new(checkpoint);
    let config = checkpoint.config().clone();
    let mut writer = Output::create(output, &edited, &config, |id| Ok(stored_dtype(checkpoint.describe(id)?.0)))?;
    let ids = config.tensor_ids();
    let mut changed = 0;
    for (done, &id) in ids.iter().enumerate() {
        go_on(on_step(done, ids.len(), "merge"))?;
        if adapters.iter().any(|adapter| adapter.lora.contains_key(&id) || adapter.replaced.contains_key(&id)) {
            let shape = checkpoint.describe(id)?.1.to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            checkpoint.values(id, 0..shape[0], &mut values)?;
            adapters.iter().for_each(|adapter| adapter.fold(id, &mut values));
            edited.replace(id, Replaced::f32(shape, &values));
            changed += 1;
        }
        writer.write(&edited, id)?;
        edited.take(id);
        checkpoint.release(id);
    }
    Ok(MergeReport { changed, input_bytes: checkpoint.file_bytes(), output_bytes: writer.finish()? })
}
