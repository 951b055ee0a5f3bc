//! JSON Lines files, read one line at a time. Their content is not trusted.

use crate::EvalError;
use edgelm_model::Message;
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// Longest line: 4 MiB. A line is held in memory, and ROUGE-L takes time in the product of the lengths of two texts.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// Keys that would change what the model is asked, and that are not supported.
const UNSUPPORTED: [&str; 5] = ["tools", "functions", "documents", "system", "images"];

/// One line's object.
#[derive(Debug)]
pub(crate) struct Record {
    /// From 1.
    pub(crate) line: usize,
    /// Its keys.
    pub(crate) object: Map<String, Value>,
}

/// The objects of a file; blank lines are skipped. Ends after the first error.
pub(crate) struct Records<R> {
    reader: R,
    path: PathBuf,
    line: usize,
    buffer: Vec<u8>,
    failed: bool,
}

impl Records<BufReader<File>> {
    pub(crate) fn open(path: &Path) -> Result<Self, EvalError> {
        let file = File::open(path).map_err(|source| EvalError::Io { path: path.to_owned(), source })?;
        Ok(Self::new(BufReader::new(file), path))
    }
}

impl<R: BufRead> Records<R> {
    /// `path` is for messages.
    pub(crate) fn new(reader: R, path: &Path) -> Self {
        Self { reader, path: path.to_owned(), line: 0, buffer: Vec::new(), failed: false }
    }

    fn error(&self, what: String) -> EvalError {
        EvalError::Line { path: self.path.clone(), line: self.line, what }
    }

    /// The next line that is not blank, without its end.
    fn read(&mut self) -> Result<Option<Record>, EvalError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let mut limited = (&mut self.reader).take(MAX_LINE_BYTES as u64 + 1);
            let read = limited
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| EvalError::Io { path: self.path.clone(), source })?;
            if read == 0 {
                return Ok(None);
            }
            if read > MAX_LINE_BYTES {
                return Err(self.error(format!("longer than the limit of {MAX_LINE_BYTES} bytes")));
            }
            let mut bytes = self.buffer.as_slice();
            if self.line == 1 {
                // Editors on Windows put a byte order mark here, which JSON does not allow.
                bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            }
            if !bytes.trim_ascii().is_empty() {
                return self.parse(bytes).map(Some);
            }
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Record, EvalError> {
        let value = serde_json::from_slice(bytes).map_err(|error| {
            let text = error.to_string();
            // serde_json counts lines within this one.
            let what = text.split(" at line ").next().unwrap_or_default();
            self.error(format!("not JSON: {what} (column {})", error.column()))
        })?;
        let Value::Object(object) = value else {
            return Err(self.error(format!("expected an object, found {}", kind(&value))));
        };
        if let Some(key) = UNSUPPORTED.into_iter().find(|&key| object.get(key).is_some_and(|value| !value.is_null())) {
            return Err(self.error(format!("key `{key}` is not supported")));
        }
        Ok(Record { line: self.line, object })
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = Result<Record, EvalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.read().transpose();
        self.failed = !matches!(record, Some(Ok(_)));
        record
    }
}

/// What a JSON value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Takes a string out of an object.
pub(crate) fn take_string(object: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}, expected a string", kind(&other))),
        None => Err(format!("`{key}` is missing")),
    }
}

/// Takes a chat out of an object: at least one message, each an object with a `role`. The rest is up to the template.
pub(crate) fn take_messages(object: &mut Map<String, Value>) -> Result<Vec<Message>, String> {
    let messages = match object.remove("messages") {
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(format!("`messages` is {}, expected a list", kind(&other))),
        None => return Err("`messages` is missing".to_owned()),
    };
    if messages.is_empty() {
        return Err("`messages` is empty".to_owned());
    }
    for (index, message) in messages.iter().enumerate() {
        let Value::Object(fields) = message else {
            return Err(format!("message {index} is {}, expected an object", kind(message)));
        };
        if !matches!(fields.get("role"), Some(Value::String(_))) {
            return Err(format!("message {index} has no `role`"));
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(bytes: &[u8]) -> Vec<Result<(usize, usize), String>> {
        Records::new(bytes, Path::new("f.jsonl"))
            .map(|record| record.map(|r| (r.line, r.object.len())).map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn blank_lines_byte_order_marks_and_missing_newlines() {
        assert_eq!(records(b"\xef\xbb\xbf{\"a\":1}\r\n\n  \n{}"), [Ok((1, 1)), Ok((4, 0))]);
        assert!(records(b"").is_empty());
        assert!(records(b"\n \n").is_empty());
    }

    #[test]
    fn errors_name_file_and_line_and_end_the_file() {
        assert_eq!(
            records(b"{}\n{\"a\":}\n{}"),
            [Ok((1, 0)), Err("`f.jsonl` line 2: not JSON: expected value (column 6)".to_owned())]
        );
        assert_eq!(records(b"\n[]"), [Err("`f.jsonl` line 2: expected an object, found a list".to_owned())]);
        assert_eq!(records(b"{\"tools\":[]}"), [Err("`f.jsonl` line 1: key `tools` is not supported".to_owned())]);
        assert!(records(b"{\"a\":\"\xff\"}")[0].is_err());
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(records(&deep)[0].is_err());
    }

    #[test]
    fn lines_are_limited() {
        let mut line = b"{\"a\":\"".to_vec();
        line.resize(MAX_LINE_BYTES + 10, b'x');
        let got = records(&line);
        assert_eq!(got, [Err("`f.jsonl` line 1: longer than the limit of 4194304 bytes".to_owned())]);
    }

    #[test]
    fn chats_are_checked() {
        let messages = |text: &str| {
            let mut object: Map<String, Value> = serde_json::from_str(text).expect("an object");
            take_messages(&mut object).map(|messages| messages.len())
        };
        assert_eq!(messages(r#"{"messages":[{"role":"user","content":"hi"}]}"#), Ok(1));
        for bad in [
            r#"{}"#,
            r#"{"messages":[]}"#,
            r#"{"messages":"hi"}"#,
            r#"{"messages":["hi"]}"#,
            r#"{"messages":[{"content":"hi"}]}"#,
            r#"{"messages":[{"role":1}]}"#,
        ] {
            assert!(messages(bad).is_err(), "{bad}");
        }
    }
}
