//! A model in another container, with adapters folded in or as it is.

use crate::{
    CompressError, OnTensor, go_on, is_gguf,
    output::{Output, stored_dtype},
};
use edgelm_format::safetensors::Element;
use edgelm_model::{Adapter, Checkpoint, Edited, Replaced, TensorId};
use edgelm_tensor::DType;
use std::path::Path;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// Matrices that adapters changed.
    pub changed: usize,
    /// Tensors that are stored in another format than they had.
    pub converted: usize,
    /// Weight files before.
    pub input_bytes: u64,
    /// Weight file now.
    pub output_bytes: u64,
}

/// Writes a model to a `.gguf` file or a folder of safetensors, with `adapters` folded in, one after another.
///
/// Tensors keep their format where the container has it. Others become F16: quantized blocks in a folder, the integers of folders
/// in a GGUF file, and the quantized matrices of layers that an adapter changes. Errors where the container has no words for the
/// model, and on adapters that no weights can hold (learned positions); `on_step` sees tensors done and may stop the work.
pub fn export(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    output: &Path,
    on_step: &mut OnTensor<'_>,
) -> Result<ExportReport, CompressError> {
    if adapters.iter().any(|adapter| !adapter.prompts.is_empty()) {
        let problem = "learned positions cannot be folded into weights".to_owned();
        return Err(CompressError::Setting { what: "--lora", value: "ADAPTION_PROMPT".to_owned(), problem });
    }
    let form = is_gguf(output).then(|| checkpoint.gguf_form());
    let checkpoint = form.as_ref().unwrap_or(checkpoint);
    let is_changed =
        |id: TensorId| adapters.iter().any(|of| of.lora.contains_key(&id) || of.replaced.contains_key(&id));
    let changed_ids: Vec<TensorId> = checkpoint.tensor_ids().iter().copied().filter(|&id| is_changed(id)).collect();
    // The matrices of a layer may be stored as one.
    let is_near = |id: TensorId| match id {
        TensorId::Layer(layer, _) => {
            changed_ids.iter().any(|other| matches!(other, TensorId::Layer(changed, _) if *changed == layer))
        }
        id => changed_ids.contains(&id),
    };
    let format = |id: TensorId, dtype: DType| match is_gguf(output) {
        _ if is_near(id) => stored_dtype(dtype),
        true if dtype.gguf_id().is_some() => dtype,
        false if Element::of(dtype).is_some() => dtype,
        _ => DType::F16,
    };
    let mut edited = Edited::new(checkpoint);
    let config = checkpoint.config();
    let stored = |id| Ok(format(id, checkpoint.describe(id)?.0));
    let mut writer = Output::create(output, &edited, config, stored)?;
    let ids = config.tensor_ids();
    let mut converted = 0;
    for (done, &id) in ids.iter().enumerate() {
        go_on(on_step(done, ids.len(), "export"))?;
        let (dtype, shape) = checkpoint.describe(id)?;
        converted += usize::from(format(id, dtype) != dtype);
        if changed_ids.contains(&id) {
            let mut values = vec![0.0; shape.iter().product()];
            checkpoint.values(id, 0..shape[0], &mut values)?;
            adapters.iter().for_each(|adapter| adapter.fold(id, &mut values));
            edited.replace(id, Replaced::f32(shape.to_vec(), &values));
        }
        writer.write(&edited, id)?;
        edited.take(id);
        checkpoint.release(id);
    }
    let (input_bytes, output_bytes) = (checkpoint.file_bytes(), writer.finish()?);
    Ok(ExportReport { changed: changed_ids.len(), converted, input_bytes, output_bytes })
}
