//! Text to ids and back.
//!
//! A thin layer over the `tokenizers` library that adds what a model folder knows beside `tokenizer.json`: which ids
//! begin and end a sequence, and whether the model wants the first of them in front of every prompt. Easy to get wrong:
//! three places may add a beginning-of-sequence token (the post-processor, the config flag, the text itself), and a
//! model that sees it twice answers worse without any error.

mod bytes;
mod gguf_read;
mod gguf_write;
mod json;
mod pre;
mod spm;
mod stream;

pub use bytes::TokenBytes;
pub(crate) use json::TokenText;
pub use stream::DecodeStream;

use crate::ModelError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{Model, Tokenizer as Inner};

/// A tokenizer with the model's conventions about special tokens.
pub struct Tokenizer {
    inner: Inner,
    special: SpecialIds,
    /// `add_bos_token` of the config; `None` if no file says so.
    add_bos: Option<bool>,
    /// Whether the post-processor puts bos in front of a text.
    post_processor_adds_bos: bool,
    /// Whether the post-processor puts eos behind a text.
    post_processor_adds_eos: bool,
    vocab_size: usize,
    notes: Vec<String>,
}

/// Ids with a role. Each is below the number of ids known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
}

impl Tokenizer {
    /// Finishes construction: switches off truncation and padding (nothing is ever cut silently), and learns from the
    /// post-processor which ids it puts around a text, which stand in for a bos or eos that no config names.
    fn assemble(
        mut inner: Inner,
        mut special: SpecialIds,
        add_bos: Option<bool>,
        notes: Vec<String>,
    ) -> Result<Self, ModelError> {
        guard(|| {
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(())
        })?;
        let (prefix, suffix) = surrounding_ids(&inner)?;
        special.bos = special.bos.or(match prefix[..] {
            [id] => Some(id),
            _ => None,
        });
        special.eos = special.eos.or(match suffix[..] {
            [id] => Some(id),
            _ => None,
        });
        if add_bos == Some(true) && special.bos.is_none() {
            return Err(ModelError::Tokenizer("`add_bos_token` is true but there is no `bos_token`".into()));
        }
        let added = inner.get_added_vocabulary().get_vocab();
        let vocab_size = inner.get_model().get_vocab_size()
            + added.keys().filter(|token| inner.get_model().token_to_id(token).is_none()).count();
        let post_processor_adds_bos = special.bos.is_some() && prefix.first().copied() == special.bos;
        let post_processor_adds_eos = special.eos.is_some() && suffix.last().copied() == special.eos;
        Ok(Self { inner, special, add_bos, post_processor_adds_bos, post_processor_adds_eos, vocab_size, notes })
    }

    /// Ids of a text. Special tokens written in the text are recognized. `add_special` runs the post-processor.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        guard(|| Ok(self.inner.encode_fast(text, add_special)?.get_ids().to_vec()))
    }

    /// Ids of a raw prompt: as `encode(text, true)`, with bos in front where the model wants it, never twice.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.encode(text, true)?;
        let Some(bos) = self.special.bos else { return Ok(ids) };
        if self.add_bos == Some(true) && ids.first() != Some(&bos) {
            ids.insert(0, bos);
        }
        if self.post_processor_adds_bos && ids.starts_with(&[bos, bos]) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Ids of a rendered chat template: no post-processor; bos in front where the model wants it and the template did not write it.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.encode(text, false)?;
        if let Some(bos) = self.special.bos
            && self.wants_bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        for &id in ids {
            self.check_id(id)?;
        }
        guard(|| self.inner.decode(ids, skip_special))
    }

    /// Incremental decoding that never yields half a character.
    pub fn stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// Ids known, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The tokenizer as the content of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, ModelError> {
        guard(|| self.inner.to_string(true))
    }

    /// Whether prompts start with bos.
    pub fn adds_bos(&self) -> bool {
        self.special.bos.is_some() && self.wants_bos()
    }

    /// Text of a token as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `decode` with `skip_special` leaves this id out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End of sequence named by the tokenizer's own files.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Further ids that end a turn or a message (`eot`, `eom`), where a GGUF file names them.
    pub fn end_of_turn(&self) -> impl Iterator<Item = u32> {
        [self.special.eot, self.special.eom].into_iter().flatten()
    }

    /// What had to be assumed while loading, one sentence each; empty when nothing was.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether a prompt has to start with bos: what the config says, else what the post-processor does.
    fn wants_bos(&self) -> bool {
        self.add_bos.unwrap_or(self.post_processor_adds_bos)
    }

    fn with_note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    fn check_id(&self, id: u32) -> Result<(), ModelError> {
        match self.inner.id_to_token(id) {
            Some(_) => Ok(()),
            None => Err(ModelError::Tokenizer(format!("id {id} is not in the vocabulary"))),
        }
    }
}

/// The ids that the post-processor puts before and after a text. Every one of them must be in the vocabulary.
fn surrounding_ids(inner: &Inner) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
    let (plain, full) = guard(|| {
        let plain = inner.encode_fast("a", false)?.get_ids().to_vec();
        let full = inner.encode_fast("a", true)?.get_ids().to_vec();
        Ok((plain, full))
    })?;
    let extra = full.len().saturating_sub(plain.len());
    let Some(before) = (0..=extra).find(|&start| full[start..].starts_with(&plain)) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let (prefix, suffix) = (full[..before].to_vec(), full[before + plain.len()..].to_vec());
    for &id in prefix.iter().chain(&suffix) {
        if inner.id_to_token(id).is_none() {
            return Err(ModelError::Tokenizer(format!("the post-processor adds id {id}, not in the vocabulary")));
        }
    }
    Ok((prefix, suffix))
}

/// Runs the library and turns its errors, and the panics it has for some malformed files, into ours.
fn guard<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ModelError::Tokenizer(error.to_string())),
        Err(_) => Err(ModelError::Tokenizer("malformed: the tokenizer library gave up on it".into())),
    }
}

#[cfg(test)]
mod tests;
