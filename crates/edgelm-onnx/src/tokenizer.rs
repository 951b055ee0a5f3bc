//! Tokenizer and chat template, as the files of a Hugging Face folder.

use crate::OnnxError;
use edgelm_model::{Checkpoint, HfFile};

/// What lies beside the graph.
pub(crate) struct TextFiles {
    pub(crate) files: Vec<HfFile>,
    pub(crate) notes: Vec<String>,
}

/// Those of a folder as they are, those of a GGUF file written anew. A model without a tokenizer has none here either, and the
/// report says so.
pub(crate) fn files(checkpoint: &Checkpoint) -> Result<TextFiles, OnnxError> {
    let mut notes = Vec::new();
    if !checkpoint.has_tokenizer() {
        notes.push("the model has no tokenizer: the folder takes and gives token ids only".to_owned());
    }
    Ok(TextFiles { files: checkpoint.text_files()?, notes })
}
