//! The environment that templates run in: what transformers adds to Jinja, and limits.

use super::{MAX_OUTPUT_BYTES, clock, json, methods, python};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

/// Steps a template may take. A long conversation takes about a hundred for each message.
const FUEL: u64 = 2_000_000;

/// Nesting of macros and blocks. Bounds the use of the stack.
const MAX_RECURSION: usize = 100;

/// The message that a template gave to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|output, _, value| {
        match value.as_str() {
            Some(text) => write_limited(output, text),
            None => write_limited(output, &python::str(value)?),
        }
    });
    environment.set_unknown_method_callback(methods::call);
    minijinja_contrib::add_to_environment(&mut environment);

    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = python::str(&message)?;
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| clock::strftime_now(format));
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: Value| python::str(&value));
    environment.add_filter("trim", trim);
    // Strings and mappings have a length and items in Python, which is what these two tests ask for.
    environment.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
    });
    environment
}

fn write_limited(output: &mut minijinja::Output<'_>, text: &str) -> Result<(), Error> {
    if text.len() > MAX_OUTPUT_BYTES {
        return Err(Error::new(ErrorKind::WriteFailure, "the template writes too much"));
    }
    output.write_str(text).map_err(Error::from)
}

/// `trim` prints what is not a string first, as Jinja's does.
fn trim(value: Value, chars: Option<String>, arguments: Kwargs) -> Result<String, Error> {
    let chars = match chars {
        Some(chars) => Some(chars),
        None => arguments.get::<Option<String>>("chars")?,
    };
    arguments.assert_all_used()?;
    let text = python::str(&value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|character| chars.contains(character)).to_owned(),
        None => text.trim().to_owned(),
    })
}
