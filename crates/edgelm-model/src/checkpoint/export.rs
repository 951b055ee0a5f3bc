//! A checkpoint as GGUF metadata.

use super::{Checkpoint, Store};
use crate::{ModelConfig, ModelError};
use edgelm_format::gguf::{Metadata, Value};

/// Kinds of end-of-sequence ids that GGUF has keys for and that llama.cpp stops at.
const EOS_KINDS: [&str; 3] = ["eos", "eot", "eom"];

impl Checkpoint {
    /// GGUF metadata that describes this model: architecture keys, tokenizer, chat template, `general.*`
    /// (for HF folders made anew; for GGUF files copied), without `general.file_type`.
    ///
    /// Errors where the format has no words for the config; see also [`Self::gguf_notes`].
    pub fn gguf_metadata(&self) -> Result<Metadata, ModelError> {
        self.gguf_metadata_with(&self.config)
    }

    /// The same for this model with another config: layers left out, widths changed.
    pub fn gguf_metadata_with(&self, config: &ModelConfig) -> Result<Metadata, ModelError> {
        let mut out = match &*self.store {
            Store::Gguf(file) if *config == self.config => copied(file.metadata()),
            Store::Gguf(file) => {
                let mut out = config.gguf_metadata()?;
                let keys = format!("{}.", config.arch.gguf_name.unwrap_or(config.arch.name));
                let is_config = |key: &str| {
                    key.starts_with(&keys) || key.starts_with("edgelm.rope.") || key == "general.architecture"
                };
                out.extend(copied(file.metadata()).into_iter().filter(|(key, _)| !is_config(key)));
                out
            }
            Store::Safetensors(_) | Store::Packed(_) => {
                let mut out = config.gguf_metadata()?;
                out.insert(1, ("general.type".to_owned(), Value::String("model".to_owned())));
                out.insert(2, ("general.name".to_owned(), Value::String(self.name.clone())));
                out.extend(self.generation.to_gguf());
                if self.has_tokenizer() {
                    out.extend(self.tokenizer()?.to_gguf(self.config.vocab_size)?);
                } else {
                    out.push(("tokenizer.ggml.model".to_owned(), Value::String("none".to_owned())));
                }
                if let Some(template) = self.chat_template()? {
                    out.push(("tokenizer.chat_template".to_owned(), Value::String(template.source().to_owned())));
                }
                self.add_token_ids(&mut out);
                out
            }
        };
        out.push(("general.quantization_version".to_owned(), Value::U32(2)));
        Ok(out)
    }

    /// Tensors that exist only in GGUF files (`rope_freqs.weight`): name, shape, values, to be stored as F32.
    pub fn gguf_extra_tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.config.gguf_extra_tensors()
    }

    /// What llama.cpp will do otherwise with a GGUF file of this model, or refuse. One sentence each; empty is usual.
    pub fn gguf_notes(&self) -> Vec<String> {
        self.gguf_notes_with(&self.config)
    }

    /// The same for this model with another config.
    pub fn gguf_notes_with(&self, config: &ModelConfig) -> Vec<String> {
        let mut notes = config.gguf_notes();
        if let Store::Safetensors(_) = &*self.store {
            if !self.has_tokenizer() {
                notes.push("no `tokenizer.json`: the file has no tokenizer and takes token ids only".to_owned());
            }
            if self.config.eos_token_ids.len() > EOS_KINDS.len() {
                let rest = &self.config.eos_token_ids[EOS_KINDS.len()..];
                notes.push(format!("GGUF has keys for {} end-of-sequence ids; left out: {rest:?}", EOS_KINDS.len()));
            }
        }
        notes
    }

    /// bos and eos ids that the tokenizer's keys do not name yet.
    fn add_token_ids(&self, out: &mut Metadata) {
        let key = |kind: &str| format!("tokenizer.ggml.{kind}_token_id");
        let named = |out: &Metadata, kind: &str| {
            out.iter().find(|(name, _)| *name == key(kind)).and_then(|(_, value)| value.as_u64())
        };
        if let Some(bos) = self.config.bos_token_id
            && named(out, "bos").is_none()
        {
            out.push((key("bos"), Value::U32(bos)));
        }
        for &id in &self.config.eos_token_ids {
            if EOS_KINDS.iter().any(|kind| named(out, kind) == Some(id.into())) {
                continue;
            }
            if let Some(free) = EOS_KINDS.iter().find(|kind| named(out, kind).is_none()) {
                out.push((key(free), Value::U32(id)));
            }
        }
    }
}

/// What stays true of a GGUF file's metadata when its tensors are stored anew.
fn copied(metadata: &Metadata) -> Metadata {
    let stale = |key: &str| {
        matches!(key, "general.file_type" | "general.quantization_version")
            || key.starts_with("split.")
            || key.starts_with("quantize.")
    };
    metadata.iter().filter(|(key, _)| !stale(key)).cloned().collect()
}
