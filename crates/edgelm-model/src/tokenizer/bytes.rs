//! What each token writes, as bytes: the side of a tokenizer that grammars need.
//!
//! A decoder is a chain of steps over whole texts. For the chains that byte-level and SentencePiece vocabularies come
//! with, what a token writes does not depend on its neighbours (but for one space in front of the first token), so that
//! a table of bytes says all. Other chains are refused, not guessed at.

use super::Tokenizer;
use crate::ModelError;
use serde_json::Value;
use std::collections::HashMap;

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// No text is made of it: an unused id.
    None,
    /// A control token, by its name.
    Special(String),
    /// A part of the text; not always whole characters.
    Text(Vec<u8>),
}

/// One step of a decoder that changes the bytes of a token.
enum StepKind {
    ByteLevel,
    ByteFallback,
    Replace { pattern: String, content: String },
}

impl Tokenizer {
    /// What each of the ids `0..count` writes.
    ///
    /// # Errors
    /// A decoder under which the text of a token depends on its neighbours (WordPiece, `BPEDecoder`, CTC).
    pub fn token_bytes(&self, count: usize) -> Result<Vec<TokenBytes>, ModelError> {
        let steps = self.byte_steps()?;
        let alphabet = byte_alphabet();
        let of = |id: u32| match self.id_to_token(id) {
            None => TokenBytes::None,
            Some(name) if self.is_special(id) => TokenBytes::Special(name),
            Some(name) => TokenBytes::Text(bytes_of(&name, &steps, &alphabet)),
        };
        Ok((0..u32::try_from(count).unwrap_or(u32::MAX)).map(of).collect())
    }

    fn byte_steps(&self) -> Result<Vec<StepKind>, ModelError> {
        let decoder = match self.inner.get_decoder() {
            Some(decoder) => serde_json::to_value(decoder).map_err(|error| ModelError::Tokenizer(error.to_string()))?,
            None => return Err(ModelError::Tokenizer("there is no decoder, so tokens are words, not bytes".into())),
        };
        let mut steps = Vec::new();
        collect(&decoder, &mut steps)?;
        Ok(steps)
    }
}

fn collect(decoder: &Value, steps: &mut Vec<StepKind>) -> Result<(), ModelError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let unsupported = || ModelError::Tokenizer(format!("the bytes of single tokens are unknown under {decoder}"));
    match decoder["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            for inner in decoder["decoders"].as_array().ok_or_else(unsupported)? {
                collect(inner, steps)?;
            }
        }
        "ByteLevel" => steps.push(StepKind::ByteLevel),
        "ByteFallback" => steps.push(StepKind::ByteFallback),
        "Metaspace" => steps.push(StepKind::Replace {
            pattern: text(&decoder["replacement"]).ok_or_else(unsupported)?,
            content: " ".into(),
        }),
        "Replace" => steps.push(StepKind::Replace {
            pattern: text(&decoder["pattern"]["String"]).ok_or_else(unsupported)?,
            content: text(&decoder["content"]).ok_or_else(unsupported)?,
        }),
        // Both only join tokens, or take the space in front of the first one.
        "Fuse" | "Strip" => {}
        _ => return Err(unsupported()),
    }
    Ok(())
}

fn bytes_of(name: &str, steps: &[StepKind], alphabet: &HashMap<char, u8>) -> Vec<u8> {
    let mut text = name.to_owned();
    for step in steps {
        match step {
            // Tokens that were added as plain text hold characters outside the alphabet, and stay as they are.
            StepKind::ByteLevel => {
                let bytes: Option<Vec<u8>> = text.chars().map(|character| alphabet.get(&character).copied()).collect();
                return bytes.unwrap_or_else(|| text.into_bytes());
            }
            StepKind::ByteFallback => {
                let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
                if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return vec![byte];
                }
            }
            StepKind::Replace { pattern, content } => text = text.replace(pattern.as_str(), content),
        }
    }
    text.into_bytes()
}

/// The characters by which byte-level vocabularies write bytes: printable Latin-1 as itself, the rest from U+0100 on
/// (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100u32;
    let mut alphabet = HashMap::new();
    for byte in 0..=u8::MAX {
        if printable(byte) {
            alphabet.insert(char::from(byte), byte);
        } else if let Some(character) = char::from_u32(next) {
            alphabet.insert(character, byte);
            next += 1;
        }
    }
    alphabet
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(decoder: Value, name: &str) -> Vec<u8> {
        let mut steps = Vec::new();
        collect(&decoder, &mut steps).expect("supported");
        bytes_of(name, &steps, &byte_alphabet())
    }

    #[test]
    fn byte_level_names_are_bytes() {
        let decoder = json!({"type": "ByteLevel"});
        assert_eq!(bytes(decoder.clone(), "Ġhi"), b" hi");
        assert_eq!(bytes(decoder.clone(), "Ċ"), b"\n");
        assert_eq!(bytes(decoder.clone(), "Ã"), [0xc3], "half a character");
        assert_eq!(bytes(decoder, "▁not in the alphabet"), "▁not in the alphabet".as_bytes());
        assert_eq!(byte_alphabet().len(), 256);
    }

    #[test]
    fn sentence_pieces_are_bytes() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        assert_eq!(bytes(decoder.clone(), "▁a▁b"), b" a b");
        assert_eq!(bytes(decoder.clone(), "<0x0A>"), b"\n");
        assert_eq!(bytes(decoder.clone(), "<0x0G>"), b"<0x0G>");
        assert_eq!(bytes(json!({"type": "Metaspace", "replacement": "_"}), "_a"), b" a");
    }

    #[test]
    fn other_decoders_are_refused() {
        let refused = collect(&json!({"type": "WordPiece", "prefix": "##"}), &mut Vec::new());
        assert!(refused.is_err_and(|error| error.to_string().contains("WordPiece")));
    }
}
