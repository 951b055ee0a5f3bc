//! Incoherence rotation: the same model with its residual stream, and the values of its heads, in another basis, in which no
//! channel stands out. What is rounded afterwards, weights and activations, has fewer outliers.
//!
//! The one thing a reader would get wrong: RMSNorm commutes with a rotation only where its gain is 1, so gains go into the
//! matrices that read the norm's output. That of the last norm goes into the output head, which therefore cannot be the
//! embedding any more: a tied model is untied, and grows by its vocabulary times its hidden size, unless that gain is the same
//! for all channels. Every architecture known here normalizes by RMSNorm without bias; means that are subtracted would have to
//! be folded as well.

mod hadamard;
mod layer;
#[cfg(test)]
mod tests;

pub use hadamard::Rotation;

use crate::{
    CompressError, OnTensor, go_on,
    layer_pass::{decode, decode_blocks},
    needs_plain_layers,
    output::Output,
};
use edgelm_format::FormatError;
use edgelm_model::{Checkpoint, Edited, Replaced, StorageKind, TensorId, Tensors};
use edgelm_tensor::DType;
use layer::{read_turned, turn_layer};
use serde::{Deserialize, Serialize};
use std::{ffi::OsStr, path::Path, sync::Arc};

/// Values of the embedding or the output head in work at a time: 16 MiB.
const VALUES_AT_A_TIME: usize = 4 << 20;

/// What is turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parts {
    /// The residual stream, and the values of every KV head.
    #[default]
    All,
    /// The values of every KV head. Leaves tied models tied.
    Values,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RotateOptions {
    /// What is turned.
    pub parts: Parts,
    /// Of the random signs.
    pub seed: u64,
}

/// What became of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotateReport {
    /// Weights now: more than before where the model was untied.
    pub parameters: u64,
    /// Weight file now.
    pub output_bytes: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes the rotated model, every tensor as F32, to `output`: a GGUF file if the name ends so, else a Hugging Face folder. It
/// computes what `checkpoint` does, up to rounding in f32. Until it is complete it has a temporary name beside; on any error
/// nothing is left. `on_step` is told how far the work has come, and may end it.
///
/// Memory: one layer twice in f32, and parts of the embedding.
/// Source: see [`Rotation`] and the layer's part.
pub fn rotate(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &RotateOptions,
    on_step: &mut OnTensor<'_>,
) -> Result<RotateReport, CompressError> {
    needs_plain_layers(checkpoint.config(), "rotation")?;
    let mut edited = Edited::new(checkpoint);
    let stream = Rotation::new(checkpoint.config().hidden_size, options.seed);
    let mut last_gain = decode(&edited, TensorId::OutputNorm)?;
    let mut notes = Vec::new();
    if options.parts == Parts::All {
        let is_flat = last_gain.iter().all(|gain| *gain == last_gain[0]);
        if checkpoint.config().tie_word_embeddings && is_flat {
            // The gain stays where it is.
            last_gain.fill(1.0);
        } else {
            if checkpoint.config().tie_word_embeddings {
                edited.config_mut().tie_word_embeddings = false;
                let more = checkpoint.config().vocab_size * checkpoint.config().hidden_size;
                notes.push(format!("rotated: the output head is no longer the embedding, {more} weights more"));
            }
            edited.replace(TensorId::OutputNorm, Replaced::f32(vec![last_gain.len()], &vec![1.0; last_gain.len()]));
        }
    }
    let config = edited.config().clone();
    let mut writer = Output::create(output, &edited, &config, |_| Ok(DType::F32))?;
    let ids = config.tensor_ids();
    let mut turned = 0;
    for (done, &id) in ids.iter().enumerate() {
        go_on(on_step(done, ids.len(), "rotate"))?;
        match id {
            TensorId::TokenEmbedding | TensorId::Output => {
                // Untied, the head starts as the embedding.
                let source = if checkpoint.has(id) { id } else { TensorId::TokenEmbedding };
                writer.write_table(id, &mut |write| {
                    each_part(checkpoint, source, &mut |mut values| {
                        match (options.parts, id) {
                            (Parts::All, TensorId::Output) => read_turned(&mut values, &last_gain, &stream),
                            (Parts::All, _) => stream.turn_rows(&mut values),
                            (Parts::Values, _) => {}
                        }
                        go_on(on_step(done, ids.len(), "rotate"))?;
                        write(&values)
                    })
                })?;
                checkpoint.release(source);
            }
            TensorId::Layer(index, _) => {
                if index == turned {
                    turn_layer(&mut edited, index, &stream, options.parts, options.seed)?;
                    turned += 1;
                }
                writer.write(&edited, id)?;
                edited.take(id);
                checkpoint.release(id);
            }
            _ => {
                writer.write(&edited, id)?;
            }
        }
    }
    Ok(RotateReport { parameters: config.parameters(), output_bytes: writer.finish()?, notes })
}

/// A rotated model in a temporary folder, for a pass that reads checkpoints. The folder goes when this does.
pub struct Rotated {
    /// The model.
    pub checkpoint: Arc<Checkpoint>,
    /// What the user should know.
    pub notes: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Rotated {
    /// Rotates `checkpoint` into a folder beside `output`, where there must be room for it in F32.
    pub fn beside(
        output: &Path,
        checkpoint: &Checkpoint,
        options: &RotateOptions,
        on_step: &mut OnTensor<'_>,
    ) -> Result<Self, CompressError> {
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io = |source| FormatError::Io { path: parent.to_owned(), action: "create a folder in", source };
        let folder = tempfile::Builder::new().prefix(".rotated-").tempdir_in(parent).map_err(io)?;
        // Its name is what GGUF files will be called by.
        let mut name = Path::new(checkpoint.name()).file_name().unwrap_or(OsStr::new("model")).to_owned();
        if checkpoint.storage() == StorageKind::Gguf {
            name.push(".gguf");
        }
        let path = folder.path().join(name);
        let report = rotate(checkpoint, &path, options, on_step)?;
        Ok(Self { checkpoint: Arc::new(Checkpoint::open(&path)?), notes: report.notes, _folder: folder })
    }
}

/// The values of a matrix, some rows at a time.
fn each_part(
    checkpoint: &Checkpoint,
    id: TensorId,
    use_part: &mut dyn FnMut(Vec<f32>) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let view = checkpoint.tensor(id)?;
    let row_len = view.row_len();
    let row_bytes = view.dtype.row_bytes(row_len)?;
    let rows = (VALUES_AT_A_TIME / row_len.max(1)).max(1);
    for bytes in view.bytes.chunks(rows * row_bytes.max(1)) {
        let count = bytes.len() / row_bytes.max(1) * row_len;
        use_part(decode_blocks(view.dtype, bytes, row_len, count)?)?;
        checkpoint.release_part(id, bytes);
    }
    Ok(())
}
