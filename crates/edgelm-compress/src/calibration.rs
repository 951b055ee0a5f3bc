//! Calibration data: text, JSON Lines of passages, or JSON Lines of chats, cut into windows of tokens.

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

/// Which part of the data is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Windows at most.
    pub samples: usize,
    /// Tokens per window at most.
    pub window: usize,
    /// Which windows.
    pub seed: u64,
}

impl Default for CalibrationOptions {
    /// 128 windows of 512 tokens: 65,000 positions, where the statistics of mica-40m stop moving the third digit.
    fn default() -> Self {
        Self { samples: 128, window: 512, seed: 0 }
    }
}

/// Reads a file and picks windows at random (the same for the same seed).
///
/// A `.jsonl` line is `{"text": …}`, or `{"messages": […]}` with an optional `answer`, rendered by the chat template.
/// Anything else is one long text. Windows shorter than 16 tokens are left out.
pub fn calibration_windows(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &CalibrationOptions,
) -> Result<Vec<Vec<u32>>, CompressError> {
    let tokenizer = checkpoint.tokenizer()?;
    let window = options.window.min(checkpoint.config().max_position_embeddings);
    let mut windows = Vec::new();
    let mut add = |tokens: Vec<u32>| {
        windows.extend(tokens.chunks(window).filter(|part| part.len() >= 16.min(window)).map(<[u32]>::to_vec));
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
        return Err(bad(path, "no passage of at least 16 tokens"));
    }
    pick(&mut windows, options);
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

/// Keeps `samples` windows, chosen by a seeded partial shuffle.
fn pick(windows: &mut Vec<Vec<u32>>, options: &CalibrationOptions) {
    let mut state = options.seed;
    for i in 0..options.samples.min(windows.len()) {
        // Knuth's 64-bit linear congruential generator; its high bits are good enough to choose passages by.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let rest = windows.len() - i;
        windows.swap(i, i + (state >> 33) as usize % rest);
    }
    windows.truncate(options.samples);
}
