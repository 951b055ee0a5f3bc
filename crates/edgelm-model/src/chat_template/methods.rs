//! Python methods of strings that the library's compatibility module lacks.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls `value.method(arguments)` as Python does.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, arguments);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            check_separator(separator)?;
            Ok(match text.split_once(separator) {
                Some((before, after)) => tuple([before, separator, after]),
                None => tuple([text, "", ""]),
            })
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            check_separator(separator)?;
            Ok(match text.rsplit_once(separator) {
                Some((before, after)) => tuple([before, separator, after]),
                None => tuple(["", "", text]),
            })
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let pieces = usize::try_from(limit.unwrap_or(-1)).map_or(usize::MAX, |limit| limit.saturating_add(1));
            let mut parts: Vec<&str> = match separator {
                Some(separator) => {
                    check_separator(separator)?;
                    text.rsplitn(pieces, separator).collect()
                }
                None => rsplit_whitespace(text, pieces),
            };
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        "casefold" => {
            let () = from_args(arguments)?;
            Ok(text.to_lowercase().into())
        }
        "isdecimal" => {
            let () = from_args(arguments)?;
            Ok((!text.is_empty() && text.chars().all(char::is_numeric)).into())
        }
        "index" => {
            let (what,): (&str,) = from_args(arguments)?;
            match text.find(what) {
                Some(at) => Ok(text[..at].chars().count().into()),
                None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        _ => pycompat::unknown_method_callback(state, value, method, arguments).map_err(|error| {
            match (error.kind(), value.kind()) {
                (ErrorKind::UnknownMethod, ValueKind::String) => {
                    Error::new(ErrorKind::UnknownMethod, format!("'str object' has no attribute '{method}'"))
                }
                _ => error,
            }
        }),
    }
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn check_separator(separator: &str) -> Result<(), Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(())
}

/// Words from the right; when `pieces` are reached the rest stays in one, without the blanks at its end.
fn rsplit_whitespace(text: &str, pieces: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        match rest.rfind(char::is_whitespace).filter(|_| parts.len() + 1 < pieces) {
            Some(at) => {
                let word = rest[at..].trim_start();
                parts.push(word);
                rest = rest[..at].trim_end();
            }
            None => {
                parts.push(if parts.len() + 1 < pieces { rest.trim_start() } else { rest });
                break;
            }
        }
    }
    parts
}
