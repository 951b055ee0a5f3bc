//! Text to ids and back.

use crate::ModelError;
use edgelm_format::gguf;

/// A tokenizer with the model's conventions about special tokens.
pub struct Tokenizer {
    _private: (),
}

impl Tokenizer {
    /// From `tokenizer.json` and, if present, `tokenizer_config.json`.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, ModelError> {
        let _ = (tokenizer, config);
        todo!()
    }
    /// Rebuilt from GGUF metadata (`tokenizer.huggingface.json` if present, else `tokenizer.ggml.*`).
    pub fn from_gguf(metadata: &gguf::Metadata) -> Result<Self, ModelError> {
        let _ = metadata;
        todo!()
    }
    /// Ids of a text. Special tokens written in the text are recognized. `add_special` runs the post-processor.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        let _ = (text, add_special);
        todo!()
    }
    /// Ids of a raw prompt: as `encode(text, true)`, with bos in front where the model wants it, never twice.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let _ = text;
        todo!()
    }
    /// Ids of a rendered chat template: no post-processor; bos in front where the model wants it and the template did not write it.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let _ = text;
        todo!()
    }
    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        let _ = (ids, skip_special);
        todo!()
    }
    /// Incremental decoding that never yields half a character.
    pub fn stream(&self, skip_special: bool) -> DecodeStream<'_> {
        let _ = skip_special;
        todo!()
    }
    /// Ids known, added tokens included.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    /// Id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        let _ = token;
        todo!()
    }
    /// Text of a token as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        let _ = id;
        todo!()
    }
    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }
    /// End of sequence named by the tokenizer's own files.
    pub fn eos(&self) -> Option<u32> {
        todo!()
    }
    /// `tokenizer.ggml.*` keys and `tokenizer.huggingface.json` for a GGUF file that llama.cpp can use.
    pub fn to_gguf(&self, vocab_size: usize) -> Result<gguf::Metadata, ModelError> {
        let _ = vocab_size;
        todo!()
    }
}

/// See [`Tokenizer::stream`].
pub struct DecodeStream<'a> {
    _tokenizer: &'a Tokenizer,
}

impl DecodeStream<'_> {
    /// Text that became certain with this id, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, ModelError> {
        let _ = id;
        todo!()
    }
    /// What is left at the end (incomplete bytes become U+FFFD), if anything.
    pub fn finish(self) -> Result<Option<String>, ModelError> {
        todo!()
    }
}
