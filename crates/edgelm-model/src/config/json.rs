//! JSON as Python writes it, and a reader that remembers which keys were asked for.

use crate::ModelError;
use serde_json::{Map, Value};
use std::{collections::BTreeSet, path::Path};

fn error(path: &Path, what: String) -> ModelError {
    ModelError::Config { path: path.to_owned(), what }
}

/// Parses a JSON object. Python's bare `NaN`, `Infinity` and `-Infinity` become the strings of the same spelling,
/// which no reader of a number accepts.
pub(crate) fn parse_object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>, ModelError> {
    let text = std::str::from_utf8(bytes).map_err(|_| error(path, "is not UTF-8".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = serde_json::from_str(text).or_else(|first| {
        // Only the second parse can differ, and only if there was something to quote.
        match quote_non_finite(text) {
            Some(quoted) => serde_json::from_str(&quoted),
            None => Err(first),
        }
    });
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(error(path, "is not a JSON object".to_owned())),
        Err(reason) => Err(error(path, format!("is not valid JSON: {reason}"))),
    }
}

/// Puts quotes around bare non-finite numbers outside strings; `None` if there are none.
fn quote_non_finite(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut in_string, mut found) = (false, false);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let mut len = next.len_utf8();
        if in_string && next == '\\' {
            len += rest[len..].chars().next().map_or(0, char::len_utf8);
        } else if next == '"' {
            in_string = !in_string;
        } else if !in_string
            && let Some(word) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word))
        {
            found = true;
            out.push('"');
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    found.then_some(out)
}

/// A JSON object of which every key must be accounted for. `null` reads as absent.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// Name of the object inside the file, with a dot; empty for the file itself.
    within: &'a str,
    map: &'a Map<String, Value>,
    /// The usual name of a key, and what this file may call it instead.
    aliases: &'static [(&'static str, &'static str)],
    read: BTreeSet<&'a str>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(path: &'a Path, within: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { path, within, map, aliases: &[], read: BTreeSet::new() }
    }

    /// From here on a key may also have its other name.
    pub(crate) fn alias(&mut self, aliases: &'static [(&'static str, &'static str)]) {
        self.aliases = aliases;
    }

    /// The name that the file has for a key.
    fn name_of<'k>(&self, key: &'k str) -> &'k str {
        let others = self.aliases.iter().filter(|(usual, _)| *usual == key);
        match self.map.contains_key(key) {
            true => key,
            false => others.map(|(_, own)| *own).find(|own| self.map.contains_key(*own)).unwrap_or(key),
        }
    }

    /// True if the key was asked for.
    pub(crate) fn was_read(&self, key: &str) -> bool {
        self.read.contains(key)
    }

    /// An error about the file that names no key by itself.
    pub(crate) fn fail(&self, what: String) -> ModelError {
        error(self.path, what)
    }

    /// An error that names key and value.
    pub(crate) fn bad(&self, key: &str, what: &str) -> ModelError {
        let key = self.name_of(key);
        let value = self.map.get(key).map_or_else(|| "absent".to_owned(), brief);
        error(self.path, format!("key `{}{key}` is {value}: {what}", self.within))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(self.name_of(key))
    }

    pub(crate) fn get(&mut self, key: &'a str) -> Option<&'a Value> {
        self.read.insert(key);
        let key = self.name_of(key);
        self.read.insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn size(&mut self, key: &'a str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => size(value, max).map(Some).map_err(|what| self.bad(key, &what)),
        }
    }

    pub(crate) fn required_size(&mut self, key: &'a str, max: usize) -> Result<usize, ModelError> {
        self.size(key, max)?.ok_or_else(|| error(self.path, format!("key `{}{key}` is missing", self.within)))
    }

    /// One size for all layers, or a list with one per layer.
    pub(crate) fn per_layer(
        &mut self,
        key: &'a str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        match self.get(key) {
            Some(Value::Array(list)) if list.len() != layers => {
                Err(self.bad(key, &format!("must have one entry per layer ({layers})")))
            }
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| size(value, max).map_err(|what| self.bad(key, &what)))
                .collect::<Result<_, _>>()
                .map(Some),
            _ => Ok(self.size(key, max)?.map(|value| vec![value; layers])),
        }
    }

    /// A finite number.
    pub(crate) fn number(&mut self, key: &'a str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.bad(key, "must be a finite number")),
            },
        }
    }

    /// A finite number above 0.
    pub(crate) fn positive(&mut self, key: &'a str) -> Result<Option<f64>, ModelError> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.bad(key, "must be above 0")),
            number => Ok(number),
        }
    }

    /// A list of finite numbers.
    pub(crate) fn numbers(&mut self, key: &'a str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        match value.as_array().map(|list| list.iter().map(number).collect::<Option<Vec<_>>>()) {
            Some(Some(numbers)) => Ok(Some(numbers)),
            _ => Err(self.bad(key, "must be a list of finite numbers")),
        }
    }

    pub(crate) fn flag(&mut self, key: &'a str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(key, "must be true or false")),
        }
    }

    pub(crate) fn text(&mut self, key: &'a str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "must be a string")),
        }
    }

    /// A list of strings; empty where absent.
    pub(crate) fn texts(&mut self, key: &'a str) -> Result<Vec<&'a str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        match value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>()) {
            Some(Some(texts)) => Ok(texts),
            _ => Err(self.bad(key, "must be a list of strings")),
        }
    }

    /// An object inside this one. What is not asked for in it is not an error.
    pub(crate) fn object(&mut self, key: &'a str) -> Result<Option<Keys<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys::new(self.path, key, map))),
            Some(_) => Err(self.bad(key, "must be an object")),
        }
    }

    /// One token id or a list of them; empty where absent.
    pub(crate) fn token_ids(&mut self, key: &'a str) -> Result<Vec<u32>, ModelError> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        values.iter().map(|value| id(value).ok_or_else(|| self.bad(key, "must be token ids"))).collect()
    }

    /// Every key that nobody read and that is in no list of `harmless` ones is an error that names it.
    pub(crate) fn finish(self, harmless: &[&[&str]]) -> Result<(), ModelError> {
        let known = |key: &str| self.read.contains(key) || harmless.iter().any(|list| list.contains(&key));
        let unknown = self.map.keys().find(|key| !known(key));
        match unknown {
            None => Ok(()),
            Some(key) => {
                let value = self.map.get(key).map_or_else(String::new, brief);
                Err(error(
                    self.path,
                    format!("unknown key `{}{key}` ({value}): it could change what the model computes", self.within),
                ))
            }
        }
    }
}

fn size(value: &Value, max: usize) -> Result<usize, String> {
    // Some writers give integers as 4096.0.
    let whole = value.as_u64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0).map(|n| n as u64));
    match whole.and_then(|n| usize::try_from(n).ok()) {
        Some(n) if (1..=max).contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from 1 to {max}")),
    }
}

/// A value for a message, cut where it is long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn python_numbers_are_read_outside_strings_only() {
        let map = parse_object(
            br#"{"a": [0.0, Infinity], "b": -Infinity, "c": "NaN \" Infinity", "d": NaN}"#,
            Path::new("x"),
        )
        .unwrap();
        assert_eq!(map["a"][1], "Infinity");
        assert_eq!(map["b"], "-Infinity");
        assert_eq!(map["c"], "NaN \" Infinity");
        let mut keys = Keys::new(Path::new("x"), "", &map);
        assert_eq!(keys.number("d").unwrap_err().to_string(), "`x`: key `d` is `\"NaN\"`: must be a finite number");
    }

    #[test]
    fn broken_json_is_an_error() {
        for bad in [&b"{"[..], b"[1]", b"\xff", b"", b"{\"a\": Infinit", b"\"\\"] {
            assert!(parse_object(bad, Path::new("x")).is_err());
        }
    }
}
