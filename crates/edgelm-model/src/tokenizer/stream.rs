//! Incremental decoding: which text becomes certain with each id.
//!
//! Decoders look at neighbours (byte runs, leading spaces), so ids cannot be decoded one by one. The last piece that
//! was given out is decoded again as context, and only what comes after it is new.

use super::{Tokenizer, guard};
use crate::ModelError;

/// A character has at most four bytes, and so at most four byte tokens. A long row of ids without a complete character
/// is noise; it is given out lossily when context and new ids reach this length, which keeps the work per id constant.
const MAX_WINDOW_IDS: usize = 128;

/// See [`Tokenizer::stream`].
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Context (the ids of the last piece), then the ids not yet given out.
    ids: Vec<u32>,
    /// How many of `ids` are context.
    context_ids: usize,
    /// What the context decodes to on its own.
    context: String,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), context_ids: 0, context: String::new() }
    }

    /// Text that became certain with this id, if any. Costs a decode of a handful of ids, however long the stream.
    ///
    /// An id without a token has no text: models have more logits than their vocabulary has tokens, up to a round number, and with
    /// enough chance one of those is drawn. That must not end an answer.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, ModelError> {
        if self.tokenizer.check_id(id).is_err() {
            return Ok(None);
        }
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        // A first token may decode to nothing on its own (a word mark whose space is stripped) and still be the
        // context that makes the space of the second one appear.
        if self.context.is_empty() && !self.ids.is_empty() {
            let context = self.decode(&self.ids)?;
            if !context.ends_with(char::REPLACEMENT_CHARACTER) {
                self.context_ids = self.ids.len();
                self.context = context;
            }
        }
        self.ids.push(id);
        let text = self.decode(&self.ids)?;
        let grew = text.len() > self.context.len() && !text.ends_with(char::REPLACEMENT_CHARACTER);
        if !grew && self.ids.len() < MAX_WINDOW_IDS {
            return Ok(None);
        }
        let new_text = self.after_context(text)?;
        self.ids.drain(..self.context_ids);
        self.context = self.decode(&self.ids)?;
        self.context_ids = self.ids.len();
        Ok(Some(new_text).filter(|text| !text.is_empty()))
    }

    /// What is left at the end (incomplete bytes become U+FFFD), if anything.
    pub fn finish(self) -> Result<Option<String>, ModelError> {
        if self.ids.len() == self.context_ids {
            return Ok(None);
        }
        let text = self.decode(&self.ids)?;
        Ok(Some(self.after_context(text)?).filter(|text| !text.is_empty()))
    }

    /// The part of `text` behind the context. Where later ids changed how the context decodes (a byte run that turned
    /// out to be invalid), what was given out stands, and the rest is decoded alone.
    fn after_context(&self, text: String) -> Result<String, ModelError> {
        match text.strip_prefix(self.context.as_str()) {
            Some(rest) => Ok(rest.to_owned()),
            None => self.decode(&self.ids[self.context_ids..]),
        }
    }

    fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        guard(|| self.tokenizer.inner.decode(ids, self.skip_special))
    }
}
