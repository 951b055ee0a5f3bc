//! Tokenizers of GGUF files.
//!
//! Our own files carry the whole `tokenizer.json`. Others hold a vocabulary and the name of an algorithm, from which
//! the same components are put together that `tokenizer.json` would list.

use super::{Inner, SpecialIds, Tokenizer, guard, json, pre, pre::Pre, spm};
use crate::ModelError;
use edgelm_format::gguf::{Array, Metadata, Value};
use serde_json::json;
use std::collections::HashMap;
use tokenizers::models::{bpe::BPE, unigram::Unigram};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Sequence};
use tokenizers::{AddedToken, ModelWrapper};

/// `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

impl Tokenizer {
    /// Rebuilt from GGUF metadata (`tokenizer.huggingface.json` if present, else `tokenizer.ggml.*`).
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, ModelError> {
        let keys = Keys(metadata);
        match keys.string("tokenizer.huggingface.json")? {
            Some(text) => {
                let inner = json::parse(text.as_bytes())?;
                let special = keys.special_ids(|id| inner.id_to_token(id).is_some())?;
                let add_bos = keys.bool("tokenizer.ggml.add_bos_token")?;
                Self::assemble(inner, special, add_bos.filter(|&add| !add || special.bos.is_some()), Vec::new())
            }
            None => rebuild(&keys),
        }
    }
}

fn rebuild(keys: &Keys<'_>) -> Result<Tokenizer, ModelError> {
    let model = keys.string("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let vocabulary = Vocabulary::read(keys)?;
    let mut notes = Vec::new();
    let mut special = keys.special_ids(|id| (id as usize) < vocabulary.tokens.len())?;
    let (mut inner, add_bos_default) = match model {
        "gpt2" | "gemma4" => {
            let name = if model == "gemma4" { Some("gemma4") } else { keys.string("tokenizer.ggml.pre")? };
            let pre = match name {
                Some(name) => pre::by_name(name).ok_or_else(|| {
                    ModelError::Tokenizer(format!("pre-tokenizer `{name}` (`tokenizer.ggml.pre`) is not supported"))
                })?,
                None => {
                    notes.push(
                        "the file names no pre-tokenizer (`tokenizer.ggml.pre`); `default` is assumed, and the \
                         model may answer worse"
                            .into(),
                    );
                    pre::by_name("default").ok_or_else(|| missing("tokenizer.ggml.pre"))?
                }
            };
            let merges = vocabulary.stored_merges(keys)?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
            (byte_level(&vocabulary, merges, pre, special.unk)?, pre.add_bos)
        }
        "llama" => {
            let default = |id: u32| Some(id).filter(|&id| (id as usize) < vocabulary.tokens.len());
            special.unk = special.unk.or(default(0));
            special.bos = special.bos.or(default(1));
            special.eos = special.eos.or(default(2));
            let add_space_prefix = keys.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            let merges = match vocabulary.stored_merges(keys)? {
                Some(merges) => merges,
                None => vocabulary.merges_by_score()?,
            };
            (sentencepiece(&vocabulary, merges, special.unk, add_space_prefix)?, true)
        }
        "t5" => {
            special.unk = special.unk.or(Some(2).filter(|_| vocabulary.tokens.len() > 2));
            (unigram(keys, &vocabulary, special.unk)?, false)
        }
        other => {
            return Err(ModelError::Tokenizer(format!(
                "tokenizer model `{other}` (`tokenizer.ggml.model`) is not supported; supported: gpt2, gemma4, llama, t5"
            )));
        }
    };
    guard(|| inner.add_tokens(vocabulary.added_tokens()))?;
    let add_bos = match keys.bool("tokenizer.ggml.add_bos_token")? {
        Some(add) => add,
        None => add_bos_default && special.bos.is_some(),
    };
    let add_eos = keys.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(model == "t5" && special.eos.is_some());
    add_template(&mut inner, special.bos.filter(|_| add_bos), special.eos.filter(|_| add_eos))?;
    Tokenizer::assemble(inner, special, Some(add_bos), notes)
}

/// The vocabulary arrays, checked to be of one length and without duplicates.
struct Vocabulary {
    tokens: Vec<String>,
    scores: Option<Vec<f32>>,
    types: Option<Vec<i32>>,
}

impl Vocabulary {
    fn read(keys: &Keys<'_>) -> Result<Self, ModelError> {
        let stored = keys.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let tokens: Vec<String> = stored
            .iter()
            .enumerate()
            .map(|(id, token)| if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() })
            .collect();
        let scores = match keys.get("tokenizer.ggml.scores") {
            None => None,
            Some(Value::Array(Array::F32(scores))) => Some(scores.clone()),
            Some(Value::Array(Array::I32(scores))) => Some(scores.iter().map(|&score| score as f32).collect()),
            Some(_) => return Err(wrong_type("tokenizer.ggml.scores", "an array of f32")),
        };
        let types = match keys.get("tokenizer.ggml.token_type") {
            None => None,
            Some(Value::Array(Array::I32(types))) => Some(types.clone()),
            Some(Value::Array(Array::U32(types))) => {
                Some(types.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect())
            }
            Some(_) => return Err(wrong_type("tokenizer.ggml.token_type", "an array of i32")),
        };
        let lengths = [("scores", scores.as_ref().map(Vec::len)), ("token_type", types.as_ref().map(Vec::len))];
        for (key, length) in lengths {
            if let Some(length) = length.filter(|&length| length != tokens.len()) {
                return Err(ModelError::Tokenizer(format!(
                    "`tokenizer.ggml.{key}` has {length} entries, `tokenizer.ggml.tokens` {}",
                    tokens.len()
                )));
            }
        }
        if let Some(id) = scores.iter().flatten().position(|score| !score.is_finite()) {
            return Err(ModelError::Tokenizer(format!("`tokenizer.ggml.scores` of token {id} is not finite")));
        }
        u32::try_from(tokens.len()).map_err(|_| ModelError::Tokenizer("more than 2^32 tokens".into()))?;
        let vocabulary = Self { tokens, scores, types };
        if vocabulary.ids().len() != vocabulary.tokens.len() {
            let mut seen = HashMap::new();
            for (id, token) in vocabulary.tokens.iter().enumerate() {
                if let Some(first) = seen.insert(token, id) {
                    return Err(ModelError::Tokenizer(format!("tokens {first} and {id} are both `{token}`")));
                }
            }
        }
        Ok(vocabulary)
    }

    fn ids(&self) -> HashMap<&str, u32> {
        self.tokens.iter().map(String::as_str).zip(0u32..).collect()
    }

    fn kind(&self, id: u32) -> i32 {
        self.types.as_ref().and_then(|types| types.get(id as usize)).copied().unwrap_or(token_type::NORMAL)
    }

    /// Tokens recognized as a whole before the text is split; control tokens count as special.
    fn added_tokens(&self) -> Vec<AddedToken> {
        (0u32..)
            .zip(&self.tokens)
            .filter_map(|(id, token)| match self.kind(id) {
                token_type::CONTROL | token_type::UNKNOWN => Some(AddedToken::from(token.clone(), true)),
                token_type::USER_DEFINED => Some(AddedToken::from(token.clone(), false)),
                _ => None,
            })
            .map(|token| token.normalized(false))
            .collect()
    }

    /// `tokenizer.ggml.merges`: two texts with a space between; all three texts must be tokens.
    fn stored_merges(&self, keys: &Keys<'_>) -> Result<Option<Vec<(String, String)>>, ModelError> {
        let Some(stored) = keys.strings("tokenizer.ggml.merges")? else { return Ok(None) };
        let ids = self.ids();
        let mut joined = String::new();
        let mut merges = Vec::with_capacity(stored.len());
        for (rank, merge) in stored.iter().enumerate() {
            let bad = |what| ModelError::Tokenizer(format!("`tokenizer.ggml.merges` entry {rank}, `{merge}`, {what}"));
            // A token may itself start with the separator, so that the search begins behind the first character.
            let skipped = merge.chars().next().map_or(0, char::len_utf8);
            let at = merge[skipped..].find(' ').ok_or_else(|| bad("has no space"))? + skipped;
            let (left, right) = (&merge[..at], &merge[at + 1..]);
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            if ![left, right, &joined].iter().all(|text| ids.contains_key(text)) {
                return Err(bad("has a part or result that is not a token"));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(Some(merges))
    }

    fn merges_by_score(&self) -> Result<Vec<(String, String)>, ModelError> {
        let scores = self.scores.as_ref().ok_or_else(|| missing("tokenizer.ggml.scores"))?;
        let merges = spm::merges_from_scores(&self.tokens, scores, &self.ids(), |id| {
            matches!(self.kind(id), token_type::NORMAL | token_type::USER_DEFINED | token_type::UNUSED)
        })?;
        let text = |id: u32| self.tokens[id as usize].clone();
        Ok(merges.into_iter().map(|merge| (text(merge.left), text(merge.right))).collect())
    }

    fn bpe(&self, merges: Vec<(String, String)>) -> tokenizers::models::bpe::BpeBuilder {
        let vocabulary = self.tokens.iter().cloned().zip(0u32..);
        BPE::builder().vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), merges)
    }

    fn token(&self, id: u32) -> String {
        self.tokens[id as usize].clone()
    }
}

/// BPE over bytes spelled as characters, or over plain text where the entry says so.
fn byte_level(
    vocabulary: &Vocabulary,
    merges: Vec<(String, String)>,
    pre: &Pre,
    unk: Option<u32>,
) -> Result<Inner, ModelError> {
    if pre.raw {
        let mut inner = sentencepiece(vocabulary, merges, unk, false)?;
        inner.with_pre_tokenizer(Some(component::<tokenizers::PreTokenizerWrapper>(split(pre.splits))?));
        return Ok(inner);
    }
    let model = guard(|| vocabulary.bpe(merges).ignore_merges(pre.ignore_merges).build())?;
    let mut inner = Inner::new(ModelWrapper::BPE(model));
    let (builtin, splits) = match pre.splits.split_last() {
        Some((&pre::GPT2, before)) => (true, before),
        _ => (false, pre.splits),
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": builtin});
    let mut steps = split(splits);
    if let Some(steps) = steps["pretokenizers"].as_array_mut() {
        steps.push(byte_level.clone());
    }
    inner.with_pre_tokenizer(Some(component::<tokenizers::PreTokenizerWrapper>(steps)?));
    inner.with_decoder(Some(component::<tokenizers::DecoderWrapper>(byte_level)?));
    if pre.nfc {
        set_normalizer(&mut inner, component(json!({"type": "NFC"}))?)?;
    }
    Ok(inner)
}

/// BPE over `▁`-marked text with byte tokens for what the vocabulary lacks.
fn sentencepiece(
    vocabulary: &Vocabulary,
    merges: Vec<(String, String)>,
    unk: Option<u32>,
    add_space_prefix: bool,
) -> Result<Inner, ModelError> {
    let mut builder = vocabulary.bpe(merges).byte_fallback(true).fuse_unk(true);
    if let Some(unk) = unk {
        builder = builder.unk_token(vocabulary.token(unk));
    }
    let mut inner = Inner::new(ModelWrapper::BPE(guard(|| builder.build())?));
    let mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let unmark = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let mut normalizers = Vec::new();
    let mut decoders = vec![unmark, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if add_space_prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(mark);
    set_normalizer(&mut inner, component(json!({"type": "Sequence", "normalizers": normalizers}))?)?;
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    inner.with_decoder(Some(component::<tokenizers::DecoderWrapper>(decoder)?));
    Ok(inner)
}

/// SentencePiece of the unigram kind.
fn unigram(keys: &Keys<'_>, vocabulary: &Vocabulary, unk: Option<u32>) -> Result<Inner, ModelError> {
    let scores = vocabulary.scores.as_ref().ok_or_else(|| missing("tokenizer.ggml.scores"))?;
    let pieces = vocabulary.tokens.iter().cloned().zip(scores.iter().map(|&score| f64::from(score))).collect();
    let byte_fallback = vocabulary.types.iter().flatten().any(|&kind| kind == token_type::BYTE);
    let model = guard(|| Unigram::from(pieces, unk.map(|id| id as usize), byte_fallback))?;
    let mut inner = Inner::new(ModelWrapper::Unigram(model));
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let charsmap = match keys.get("tokenizer.ggml.precompiled_charsmap") {
        None => None,
        Some(Value::Array(Array::U8(bytes))) => Some(bytes.clone()),
        Some(Value::Array(Array::I8(bytes))) => Some(bytes.iter().map(|byte| byte.cast_unsigned()).collect()),
        Some(_) => return Err(wrong_type("tokenizer.ggml.precompiled_charsmap", "an array of bytes")),
    };
    if let Some(bytes) = charsmap.filter(|bytes: &Vec<u8>| !bytes.is_empty()) {
        let normalizer = Precompiled::from(&bytes)
            .map_err(|error| ModelError::Tokenizer(format!("`tokenizer.ggml.precompiled_charsmap`: {error}")))?;
        normalizers.push(NormalizerWrapper::Precompiled(normalizer));
    }
    if keys.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
        normalizers.push(component(json!({"type": "Strip", "strip_left": false, "strip_right": true}))?);
        normalizers.push(component(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}))?);
    }
    if !normalizers.is_empty() {
        set_normalizer(&mut inner, NormalizerWrapper::Sequence(Sequence::new(normalizers)))?;
    }
    let scheme = if keys.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) { "always" } else { "never" };
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    inner.with_pre_tokenizer(Some(component::<tokenizers::PreTokenizerWrapper>(metaspace.clone())?));
    inner.with_decoder(Some(component::<tokenizers::DecoderWrapper>(metaspace)?));
    Ok(inner)
}

/// A post-processor that puts these ids around a text.
fn add_template(inner: &mut Inner, bos: Option<u32>, eos: Option<u32>) -> Result<(), ModelError> {
    let mut tokens = serde_json::Map::new();
    let mut special = |id: u32| {
        let text = inner.id_to_token(id).unwrap_or_default();
        tokens.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
        json!({"SpecialToken": {"id": text, "type_id": 0}})
    };
    let mut single = Vec::new();
    single.extend(bos.map(&mut special));
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(eos.map(&mut special));
    if tokens.is_empty() {
        return Ok(());
    }
    let mut pair = single.clone();
    pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    inner.with_post_processor(Some(component::<tokenizers::PostProcessorWrapper>(template)?));
    Ok(())
}

/// A sequence of `Split` steps.
fn split(patterns: &[&str]) -> serde_json::Value {
    let steps: Vec<_> = patterns
        .iter()
        .map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}))
        .collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn component<T: serde::de::DeserializeOwned>(description: serde_json::Value) -> Result<T, ModelError> {
    guard(|| Ok(serde_json::from_value(description)?))
}

fn set_normalizer(inner: &mut Inner, normalizer: NormalizerWrapper) -> Result<(), ModelError> {
    guard(|| inner.with_normalizer(Some(normalizer)).map(|_| ()))
}

fn missing(key: &str) -> ModelError {
    ModelError::Tokenizer(format!("key `{key}` is missing"))
}

fn wrong_type(key: &str, expected: &str) -> ModelError {
    ModelError::Tokenizer(format!("key `{key}` is not {expected}"))
}

/// Typed access to metadata; a key of the wrong type is an error that names it.
struct Keys<'a>(&'a Metadata);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| wrong_type(key, "a string"))).transpose()
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| wrong_type(key, "a bool"))).transpose()
    }

    fn strings(&self, key: &str) -> Result<Option<&'a [String]>, ModelError> {
        self.get(key).map(|value| value.as_strings().ok_or_else(|| wrong_type(key, "an array of strings"))).transpose()
    }

    /// The ids with a role; an id that is not `known` is an error.
    fn special_ids(&self, known: impl Fn(u32) -> bool) -> Result<SpecialIds, ModelError> {
        let id = |role: &str| -> Result<Option<u32>, ModelError> {
            let key = format!("tokenizer.ggml.{role}_token_id");
            let Some(value) = self.get(&key) else { return Ok(None) };
            let id = value.as_u64().ok_or_else(|| wrong_type(&key, "an id"))?;
            match u32::try_from(id).ok().filter(|&id| known(id)) {
                Some(id) => Ok(Some(id)),
                None => Err(ModelError::Tokenizer(format!("`{key}` is {id}, which is not in the vocabulary"))),
            }
        };
        Ok(SpecialIds {
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unk: id("unknown")?,
            pad: id("padding")?,
        })
    }
}
