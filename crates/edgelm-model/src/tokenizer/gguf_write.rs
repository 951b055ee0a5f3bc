//! Tokenizers for GGUF files: the keys that llama.cpp reads, and the whole `tokenizer.json` for ourselves.

use super::gguf_read::token_type;
use super::{Tokenizer, guard, pre, spm, spm::Merge};
use crate::ModelError;
use edgelm_format::gguf::{Array, Metadata, Value};
use serde::Deserialize;
use std::collections::HashMap;

/// What a GGUF file will hold, and what llama.cpp will do otherwise than we do.
struct Export {
    metadata: Metadata,
    notes: Vec<String>,
}

/// The parts of `tokenizer.json` that have a counterpart in a GGUF file.
#[derive(Deserialize)]
struct File {
    added_tokens: Vec<Added>,
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    decoder: serde_json::Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Model {
    #[serde(rename = "BPE")]
    Bpe {
        vocab: HashMap<String, u32>,
        merges: Vec<(String, String)>,
        unk_token: Option<String>,
        byte_fallback: bool,
        ignore_merges: bool,
    },
    Unigram {
        vocab: Vec<(String, f64)>,
        unk_id: Option<u32>,
    },
    #[serde(other)]
    Other,
}

impl Tokenizer {
    /// `tokenizer.ggml.*` keys and `tokenizer.huggingface.json` for a GGUF file that llama.cpp can use.
    ///
    /// The vocabulary is filled up to `vocab_size` (the rows of the embedding) with unused tokens. Added tokens beyond
    /// it are left out, as the model cannot produce them; a vocabulary beyond it is an error. What llama.cpp will do
    /// otherwise than this tokenizer is in [`Tokenizer::gguf_notes`].
    pub fn to_gguf(&self, vocab_size: usize) -> Result<Metadata, ModelError> {
        Ok(self.export(vocab_size)?.metadata)
    }

    /// Where llama.cpp will tokenize otherwise than this tokenizer when it reads [`Tokenizer::to_gguf`], one sentence
    /// each; empty when the two agree. Our own reader is exact in any case.
    pub fn gguf_notes(&self, vocab_size: usize) -> Result<Vec<String>, ModelError> {
        Ok(self.export(vocab_size)?.notes)
    }

    fn export(&self, vocab_size: usize) -> Result<Export, ModelError> {
        let text = guard(|| self.inner.to_string(false))?;
        let file: File = serde_json::from_str(&text)
            .map_err(|error| ModelError::Tokenizer(format!("cannot be written to a GGUF file: {error}")))?;
        let mut notes = Vec::new();
        let mut table = TokenTable::new(vocab_size);
        let mut metadata = match &file.model {
            Model::Bpe { vocab, merges, unk_token, byte_fallback, ignore_merges } => {
                for (token, &id) in vocab {
                    table.set(id, token, token_type::NORMAL)?;
                }
                table.add(&file.added_tokens, &mut notes)?;
                if let Some(id) = unk_token.as_ref().and_then(|token| vocab.get(token)) {
                    table.types[*id as usize] = token_type::UNKNOWN;
                }
                if mentions(&file.pre_tokenizer, "ByteLevel") || mentions(&file.decoder, "ByteLevel") {
                    byte_level(&file, merges, *ignore_merges, &table, &mut notes)
                } else if *byte_fallback {
                    sentencepiece(&file, vocab, merges, &mut table, &mut notes)?
                } else {
                    notes.push("llama.cpp has no BPE without a byte alphabet or byte tokens".into());
                    table.metadata("no_vocab", Vec::new())
                }
            }
            Model::Unigram { vocab, unk_id } => {
                let mut scores = vec![0.0; vocab_size];
                for (id, (token, score)) in (0u32..).zip(vocab) {
                    table.set(id, token, token_type::NORMAL)?;
                    scores[id as usize] = *score as f32;
                }
                table.add(&file.added_tokens, &mut notes)?;
                if let Some(id) = unk_id {
                    table.types[*id as usize] = token_type::UNKNOWN;
                }
                if !file.normalizer.is_null() {
                    notes.push("llama.cpp will not apply the normalizer of this unigram vocabulary".into());
                }
                table.metadata(
                    "t5",
                    vec![
                        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(scores))),
                        ("tokenizer.ggml.add_space_prefix".into(), Value::Bool(adds_space_prefix(&file))),
                    ],
                )
            }
            Model::Other => {
                notes.push("llama.cpp cannot read this kind of vocabulary from our files".into());
                table.metadata("no_vocab", Vec::new())
            }
        };
        let special = self.special;
        let roles = [
            ("bos", special.bos),
            ("eos", special.eos),
            ("eot", special.eot),
            ("eom", special.eom),
            ("unknown", special.unk),
            ("padding", special.pad),
        ];
        for (role, id) in roles {
            if let Some(id) = id.filter(|&id| (id as usize) < vocab_size) {
                metadata.push((format!("tokenizer.ggml.{role}_token_id"), Value::U32(id)));
            }
        }
        metadata.push(("tokenizer.ggml.add_bos_token".into(), Value::Bool(self.wants_bos())));
        metadata.push(("tokenizer.ggml.add_eos_token".into(), Value::Bool(self.post_processor_adds_eos)));
        metadata.push(("tokenizer.huggingface.json".into(), Value::String(text)));
        Ok(Export { metadata, notes })
    }
}

/// Text and type of every row of the embedding.
struct TokenTable {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl TokenTable {
    fn new(vocab_size: usize) -> Self {
        Self {
            tokens: (0..vocab_size).map(|id| format!("[PAD{id}]")).collect(),
            types: vec![token_type::UNUSED; vocab_size],
        }
    }

    fn set(&mut self, id: u32, token: &str, kind: i32) -> Result<(), ModelError> {
        let rows = self.tokens.len();
        let Some(slot) = self.tokens.get_mut(id as usize) else {
            return Err(ModelError::Tokenizer(format!("token `{token}` has id {id}, the model only {rows} rows")));
        };
        *slot = token.to_owned();
        self.types[id as usize] = kind;
        Ok(())
    }

    fn add(&mut self, added: &[Added], notes: &mut Vec<String>) -> Result<(), ModelError> {
        for token in added {
            if token.id as usize >= self.tokens.len() {
                notes.push(format!("token `{}` is left out: the model has no row {}", token.content, token.id));
                continue;
            }
            let kind = if token.special { token_type::CONTROL } else { token_type::USER_DEFINED };
            self.set(token.id, &token.content, kind)?;
        }
        Ok(())
    }

    fn metadata(&self, model: &str, rest: Metadata) -> Metadata {
        let mut metadata = vec![
            ("tokenizer.ggml.model".into(), Value::String(model.into())),
            ("tokenizer.ggml.tokens".into(), Value::Array(Array::String(self.tokens.clone()))),
            ("tokenizer.ggml.token_type".into(), Value::Array(Array::I32(self.types.clone()))),
        ];
        metadata.extend(rest);
        metadata
    }
}

fn byte_level(
    file: &File,
    merges: &[(String, String)],
    ignore_merges: bool,
    table: &TokenTable,
    notes: &mut Vec<String>,
) -> Metadata {
    let nfc = file.normalizer["type"] == "NFC";
    let name = match pre::by_structure(&file.pre_tokenizer, ignore_merges, nfc) {
        Some(pre) => pre.names[0],
        None => {
            notes
                .push("llama.cpp has no name for this pre-tokenizer; `default` is written and splits otherwise".into());
            "default"
        }
    };
    if !file.normalizer.is_null() {
        notes.push("llama.cpp will not apply the normalizer (text that is already normalized is not affected)".into());
    }
    table.metadata(
        "gpt2",
        vec![
            ("tokenizer.ggml.pre".into(), Value::String(name.into())),
            ("tokenizer.ggml.merges".into(), written_merges(merges)),
        ],
    )
}

fn sentencepiece(
    file: &File,
    vocab: &HashMap<String, u32>,
    merges: &[(String, String)],
    table: &mut TokenTable,
    notes: &mut Vec<String>,
) -> Result<Metadata, ModelError> {
    for byte in 0..=u8::MAX {
        if let Some(&id) = vocab.get(&format!("<0x{byte:02X}>")) {
            table.types[id as usize] = token_type::BYTE;
        }
    }
    let ids: HashMap<&str, u32> = vocab.iter().map(|(token, &id)| (token.as_str(), id)).collect();
    let by_id: Vec<Merge> = merges
        .iter()
        .filter_map(|(left, right)| {
            let joined = *ids.get(format!("{left}{right}").as_str())?;
            Some(Merge { left: *ids.get(left.as_str())?, right: *ids.get(right.as_str())?, joined })
        })
        .collect();
    let scores = spm::scores_from_merges(table.tokens.len(), &by_id);
    let derived = spm::merges_from_scores(&table.tokens, &scores, &ids, |id| {
        matches!(table.types[id as usize], token_type::NORMAL | token_type::USER_DEFINED)
    })?;
    let scheme = &file.pre_tokenizer["prepend_scheme"];
    if scheme == "first" {
        notes.push(
            "llama.cpp puts a space in front of text that begins with one, and behind special tokens; this tokenizer \
             does neither"
                .into(),
        );
    }
    let mut rest = vec![
        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.add_space_prefix".into(), Value::Bool(adds_space_prefix(file))),
    ];
    if !spm::are_equivalent(&by_id, &derived) {
        notes
            .push("the merges are not those of a SentencePiece model; llama.cpp may split rare words otherwise".into());
        rest.push(("tokenizer.ggml.merges".into(), written_merges(merges)));
    }
    rest.insert(0, ("tokenizer.ggml.pre".into(), Value::String("default".into())));
    Ok(table.metadata("llama", rest))
}

fn written_merges(merges: &[(String, String)]) -> Value {
    Value::Array(Array::String(merges.iter().map(|(left, right)| format!("{left} {right}")).collect()))
}

/// Whether a space is put in front of a text.
fn adds_space_prefix(file: &File) -> bool {
    let metaspace = |step: &serde_json::Value| step["type"] == "Metaspace" && step["prepend_scheme"] != "never";
    let steps = file.pre_tokenizer["pretokenizers"].as_array();
    mentions(&file.normalizer, "Prepend")
        || metaspace(&file.pre_tokenizer)
        || steps.is_some_and(|steps| steps.iter().any(metaspace))
}

/// Whether a component, or a part of a sequence of them, is of this type.
fn mentions(component: &serde_json::Value, kind: &str) -> bool {
    component["type"] == kind
        || ["normalizers", "pretokenizers", "decoders"]
            .iter()
            .filter_map(|list| component[*list].as_array())
            .flatten()
            .any(|step| mentions(step, kind))
}
