//! The form an answer must have: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`.

use super::{
    fields::{Fields, items, wrong_type},
    parameters::Wanted,
};
use crate::error::ApiError;
use edgelm_engine::Constraint;
use serde_json::Value;

/// The one constraint that a request asks for, if any.
pub(super) fn constraint(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut found = Vec::new();
    if let Some(format) = fields.inner("response_format")? {
        found.extend(response_format(format)?);
    }
    if let Some(outputs) = fields.inner("structured_outputs")? {
        found.extend(structured_outputs(outputs, "")?);
    }
    found.extend(kinds(fields, "guided_")?);
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(_), Some(second)) => {
            Err(ApiError::invalid(second.param, "an answer can have one form; another field asks for one as well"))
        }
        (first, _) => Ok(first),
    }
}

/// `{"type": "text" | "json_object" | "json_schema", "json_schema": {"name", "schema", "strict", "description"}}`.
pub(super) fn response_format(mut format: Fields) -> Result<Option<Wanted>, ApiError> {
    let kind = format.required_string("type")?;
    let wanted = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Wanted { param: format.path().to_owned(), constraint: Constraint::JsonObject }),
        "json_schema" => {
            let missing = ApiError::MissingParameter { param: format.name("json_schema") };
            Some(named_schema(format.inner("json_schema")?.ok_or(missing)?)?)
        }
        other => {
            let what = format!("`{other}` is none of `text`, `json_object` and `json_schema`");
            return Err(ApiError::invalid(format.name("type"), what));
        }
    };
    format.finish()?;
    Ok(wanted)
}

/// `{"name", "schema", "strict", "description"}`. Schemas are enforced whether or not they are `strict`.
pub(super) fn named_schema(mut named: Fields) -> Result<Wanted, ApiError> {
    named.string("name")?;
    named.string("description")?;
    named.boolean("strict")?;
    let param = named.name("schema");
    let schema = named.required("schema")?;
    named.finish()?;
    Ok(Wanted { param, constraint: Constraint::JsonSchema(schema) })
}

fn structured_outputs(mut outputs: Fields, prefix: &str) -> Result<Option<Wanted>, ApiError> {
    let wanted = kinds(&mut outputs, prefix)?;
    outputs.finish()?;
    Ok(wanted)
}

/// `json`, `regex`, `choice`, `grammar` and `json_object`, each with `prefix` in front.
fn kinds(fields: &mut Fields, prefix: &str) -> Result<Option<Wanted>, ApiError> {
    let mut found = None;
    for kind in ["json", "regex", "choice", "grammar", "json_object"] {
        let name = format!("{prefix}{kind}");
        let param = fields.name(&name);
        let Some(value) = fields.take(&name) else { continue };
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&param, "a string", &other)),
        };
        let constraint = match kind {
            "json" => Constraint::JsonSchema(schema_or_text(&param, value)?),
            "regex" => Constraint::Regex(text(value)?),
            "grammar" => Constraint::Lark(text(value)?),
            "choice" => Constraint::Choice(
                items(&param, value)?.into_iter().map(|(_, item)| text(item)).collect::<Result<_, _>>()?,
            ),
            _ => match value {
                Value::Bool(true) => Constraint::JsonObject,
                Value::Bool(false) => continue,
                other => return Err(wrong_type(&param, "true or false", &other)),
            },
        };
        if found.is_some() {
            return Err(ApiError::invalid(param, "an answer can have one form; another field asks for one as well"));
        }
        found = Some(Wanted { param, constraint });
    }
    Ok(found)
}

/// A schema, also as text that holds one.
fn schema_or_text(param: &str, value: Value) -> Result<Value, ApiError> {
    match value {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| ApiError::invalid(param, format!("is not JSON: {error}")))
        }
        other => Ok(other),
    }
}
