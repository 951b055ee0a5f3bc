//! Tokenizers of Hugging Face folders: `tokenizer.json` with the conventions of `tokenizer_config.json`.

use super::{Inner, SpecialIds, Tokenizer, guard};
use crate::ModelError;
use serde::Deserialize;
use std::collections::BTreeMap;
use tokenizers::AddedToken;

/// The keys of `tokenizer_config.json` that change ids. The rest describes Python classes or is the chat template.
#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedTokenEntry>,
}

/// A token by its text, or the object form of it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenText {
    Plain(String),
    Object { content: String },
}

impl TokenText {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Object { content } => content,
        }
    }
}

#[derive(Deserialize)]
struct AddedTokenEntry {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Tokenizer {
    /// From `tokenizer.json` and, if present, `tokenizer_config.json`.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, ModelError> {
        let mut inner = parse(tokenizer)?;
        let config: Config = match config {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| ModelError::Tokenizer(format!("tokenizer_config.json: {error}")))?,
            None => Config::default(),
        };
        add_missing_tokens(&mut inner, &config.added_tokens_decoder)?;
        let special = SpecialIds {
            bos: required(&mut inner, "bos_token", config.bos_token.as_ref())?,
            eos: required(&mut inner, "eos_token", config.eos_token.as_ref())?,
            unk: config.unk_token.and_then(|token| inner.token_to_id(token.as_str())),
            pad: config.pad_token.and_then(|token| inner.token_to_id(token.as_str())),
            ..SpecialIds::default()
        };
        // Some configs state the flag without naming a token; there is nothing to add then.
        let add_bos = config.add_bos_token.filter(|&add| !add || special.bos.is_some());
        let tokenizer = Self::assemble(inner, special, add_bos, Vec::new())?;
        Ok(match config.add_eos_token {
            Some(true) if !tokenizer.post_processor_adds_eos => tokenizer.with_note(
                "`add_eos_token` is not applied: a prompt that ends with eos leaves nothing to generate".into(),
            ),
            _ => tokenizer,
        })
    }
}

/// Parses `tokenizer.json`.
pub(super) fn parse(bytes: &[u8]) -> Result<Inner, ModelError> {
    guard(|| Inner::from_bytes(bytes))
        .map_err(|error| ModelError::Tokenizer(format!("tokenizer.json: {}", message(&error))))
}

fn message(error: &ModelError) -> String {
    match error {
        ModelError::Tokenizer(what) => what.clone(),
        other => other.to_string(),
    }
}

/// Tokens that only the config lists (older folders) become known, at the id stated there.
fn add_missing_tokens(inner: &mut Inner, entries: &BTreeMap<String, AddedTokenEntry>) -> Result<(), ModelError> {
    let mut missing = Vec::new();
    for (key, entry) in entries {
        let id: u32 = key.parse().map_err(|_| {
            ModelError::Tokenizer(format!(
                "tokenizer_config.json: `added_tokens_decoder` has the key `{key}`, not an id"
            ))
        })?;
        if inner.get_added_vocabulary().simple_id_to_token(id).is_none() {
            missing.push((id, entry));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    let tokens = missing.iter().map(|(_, entry)| {
        AddedToken::from(entry.content.clone(), entry.special)
            .single_word(entry.single_word)
            .lstrip(entry.lstrip)
            .rstrip(entry.rstrip)
            .normalized(entry.normalized.unwrap_or(!entry.special))
    });
    guard(|| inner.add_tokens(tokens))?;
    for (id, entry) in missing {
        let got = inner.token_to_id(&entry.content);
        if got != Some(id) {
            return Err(ModelError::Tokenizer(format!(
                "tokenizer_config.json gives `{}` the id {id}, tokenizer.json {}",
                entry.content,
                got.map_or("none".into(), |got| got.to_string()),
            )));
        }
    }
    Ok(())
}

/// Id of a named token, which from then on is recognized in text and counts as special.
fn required(inner: &mut Inner, key: &str, token: Option<&TokenText>) -> Result<Option<u32>, ModelError> {
    let Some(text) = token.map(TokenText::as_str) else { return Ok(None) };
    let id = inner
        .token_to_id(text)
        .ok_or_else(|| ModelError::Tokenizer(format!("`{key}` is `{text}`, which is not in the vocabulary")))?;
    if !inner.get_added_vocabulary().is_special_token(text) {
        guard(|| inner.add_special_tokens([AddedToken::from(text, true).normalized(false)]))?;
    }
    Ok(Some(id))
}
