//! The `tojson` filter as transformers overrides it: Python's `json.dumps` without HTML escapes.

use super::python;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Arguments of `json.dumps` that the filter takes.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, by position or name.
pub(super) fn tojson(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut arguments = [const { None }; 4];
    for (slot, (index, name)) in arguments.iter_mut().zip(names.iter().enumerate()) {
        *slot = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
    }
    named.assert_all_used()?;
    let [ensure_ascii, indent, separators, sort_keys] = arguments.map(|argument| argument.filter(|value| !value.is_none()));
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let (item_separator, key_separator) = match separators {
        Some(pair) => (python::str(&pair.get_item_by_index(0)?)?, python::str(&pair.get_item_by_index(1)?)?),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style =
        Style { ensure_ascii: truth(ensure_ascii), indent, item_separator, key_separator, sort_keys: truth(sort_keys) };
    let mut out = String::new();
    style.write(&value, &mut out, 0)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth > python::MAX_DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, "value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&number(f64::try_from(value.clone())?)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(('[', ']'), &items, out, depth, |item, out| self.write(item, out, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(('{', '}'), &keys, out, depth, |key, out| {
                    self.write_key(key, out)?;
                    out.push_str(&self.key_separator);
                    self.write(&value.get_item(key)?, out, depth + 1)
                })?;
            }
            kind => {
                let what = format!("object of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, what));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        (open, close): (char, char),
        items: &[Value],
        out: &mut String,
        depth: usize,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        match key.as_str() {
            Some(text) => self.write_string(text, out),
            None => {
                let mut text = String::new();
                match key.kind() {
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => self.write(key, &mut text, 0)?,
                    kind => {
                        let what = format!("keys must be str, int, float, bool or None, not {kind}");
                        return Err(Error::new(ErrorKind::BadSerialization, what));
                    }
                }
                self.write_string(&text, out);
            }
        }
        Ok(())
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => write_unit(u32::from(character) as u16, out),
                '\u{7f}'.. if self.ensure_ascii => {
                    let mut units = [0; 2];
                    // Python leaves the delete character as it is.
                    if character == '\u{7f}' {
                        out.push(character);
                    } else {
                        character.encode_utf16(&mut units).iter().for_each(|&unit| write_unit(unit, out));
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn write_unit(unit: u16, out: &mut String) {
    // Writing to a string does not fail.
    let _ = write!(out, "\\u{unit:04x}");
}

fn number(number: f64) -> String {
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        if number < 0.0 { "-Infinity".into() } else { "Infinity".into() }
    } else {
        python::float(number)
    }
}
