//! Text, JSON Lines of passages, or JSON Lines of chats, cut into windows of tokens.

use super::LEAST_TOKENS;
use crate::CompressError;
use edgelm_model::{ChatTemplate, Checkpoint, Tokenizer};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

/// Longest line and longest text file read: beyond it, the file is not calibration data.
const MAX_BYTES: u64 = 1 << 30;

/// All windows of a file, in its order.
///
/// A `.jsonl` line is `{"text": …}`, or `{"messages": […]}` with an optional `answer`, rendered by the chat template.
/// Anything else is one long text. Windows shorter than 16 tokens are left out.
pub(super) fn windows(checkpoint: &Checkpoint, path: &Path, window: usize) -> Result<Vec<Vec<u32>>, CompressError> {
    let tokenizer = checkpoint.tokenizer()?;
    let mut windows = Vec::new();
    let mut add = |tokens: Vec<u32>| {
        windows
            .extend(tokens.chunks(window).filter(|part| part.len() >= LEAST_TOKENS.min(window)).map(<[u32]>::to_vec));
    };
    let is_lines = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if is_lines {
        let template = checkpoint.chat_template()?;
        let mut reader = BufReader::new(File::open(path).map_err(|error| bad(path, error))?);
        for number in 1.. {
            let mut line = String::new();
            let read = reader.by_ref().take(MAX_BYTES).read_line(&mut line);
            if read.map_err(|error| bad(path, format!("line {number}: {error}")))? == 0 {
                break;
            }
            if !line.trim().is_empty() {
                let tokens = line_tokens(&line, tokenizer, template);
                add(tokens.map_err(|what| bad(path, format!("line {number}: {what}")))?);
            }
        }
    } else {
        let mut text = String::new();
        let file = File::open(path).map_err(|error| bad(path, error))?;
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(|error| bad(path, error))?;
        add(tokenizer.encode(&text, false)?);
    }
    if windows.is_empty() {
        return Err(bad(path, format!("no passage of at least {LEAST_TOKENS} tokens")));
    }
    Ok(windows)
}

fn bad(path: &Path, what: impl ToString) -> CompressError {
    CompressError::Calibration { path: path.to_owned(), what: what.to_string() }
}

fn line_tokens(line: &str, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Result<Vec<u32>, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(text) = value["text"].as_str() {
        return tokenizer.encode_prompt(text).map_err(|error| error.to_string());
    }
    let messages = value["messages"].as_array().ok_or("neither `text` nor `messages`")?;
    let template = template.ok_or("`messages` need a chat template, and this model has none")?;
    let mut messages = messages.clone();
    if let Some(answer) = value["answer"].as_str() {
        messages.push(serde_json::json!({ "role": "assistant", "content": answer }));
    }
    let text = template.render(&messages, false, &Map::new()).map_err(|error| error.to_string())?;
    tokenizer.encode_chat(&text).map_err(|error| error.to_string())
}
