//! JSON schemas as `llguidance` takes them.
//!
//! The library refuses what it does not know. Here is the rest: what it would read as something else than the schema says, because
//! it computes with doubles or is lenient, is written so that it enforces at least as much, or is refused.

use super::endless;
use crate::EngineError;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Number, Value, json};

/// Between the parts of a JSON text: nothing, a space, or a line break with an indentation. Bounded, because a model
/// that may write spaces for ever sometimes does.
const JSON_SPACE: &str = r" |\n[ \t]{0,20}";

/// The key by which `llguidance` takes options in a schema. Users may not: some of them switch checks off.
const OPTIONS_KEY: &str = "x-guidance";

/// Keywords whose value is a schema, a list of schemas (`items` may be either), or schemas by name.
const SCHEMA: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
const BY_NAME: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];
/// Keywords that count something.
const COUNTS: [&str; 6] = ["maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"];

/// 2^53: up to here every integer is a double.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// The largest double that is a 64-bit integer: the library counts with those.
const LARGEST: f64 = 9_223_372_036_854_774_784.0;

/// A schema as `llguidance` takes it, also inside `%json` in a Lark grammar.
///
/// # Errors
/// [`EngineError::Constraint`] for a schema that is neither an object nor `true`, holds options of the library, refers to itself
/// without an end, or asks for what the library would not enforce as it is written: the message names the keyword.
pub fn schema_with_options(schema: &Value) -> Result<Value, EngineError> {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        Value::Bool(true) => Map::new(),
        _ => return Err(EngineError::Constraint("a JSON schema must be an object, or `true`".into())),
    };
    if schema.contains_key(OPTIONS_KEY) {
        return Err(EngineError::Constraint(format!("the schema keyword `{OPTIONS_KEY}` is not supported")));
    }
    let has_prefix_items = schema.get("$schema").and_then(Value::as_str).is_some_and(|id| id.contains("/2020-12/"));
    prepare(&mut schema, has_prefix_items)?;
    endless::refuse(&schema)?;
    schema.insert(OPTIONS_KEY.into(), json!({"whitespace_pattern": JSON_SPACE}));
    Ok(Value::Object(schema))
}

/// A schema and all below it. `has_prefix_items`: it says that lists in `items` are not of its draft.
fn prepare(schema: &mut Map<String, Value>, has_prefix_items: bool) -> Result<(), EngineError> {
    let refuse = |what: String| Err(EngineError::Constraint(what));
    if has_prefix_items && schema.get("items").is_some_and(Value::is_array) {
        return refuse("`items` is a schema in this draft; a list of them is `prefixItems`".to_owned());
    }
    let is_number = schema.get("type").and_then(Value::as_str) == Some("number");
    for (key, value) in schema.iter_mut() {
        match (key.as_str(), &mut *value) {
            ("enum" | "type", Value::Array(choices)) if choices.is_empty() => {
                return refuse(format!("`{key}` has nothing to choose from"));
            }
            ("enum" | "const", value) => {
                if let Some(number) = inexact(value) {
                    return refuse(format!("`{key}`: {number} is beyond the integers that can be enforced exactly"));
                }
            }
            ("multipleOf", Value::Number(step)) if step.as_f64().is_some_and(|step| step <= 0.0) => {
                return refuse(format!("`multipleOf` must be above 0, not {step}"));
            }
            ("minimum" | "exclusiveMinimum", Value::Number(bound)) => {
                *bound = bound_within(key, bound, -1.0, is_number)?
            }
            ("maximum" | "exclusiveMaximum", Value::Number(bound)) => {
                *bound = bound_within(key, bound, 1.0, is_number)?
            }
            ("$ref", Value::String(pointer)) => *pointer = unescaped(pointer),
            (count, Value::Number(number)) if COUNTS.contains(&count) => {
                // 3.0 is an integer in JSON Schema.
                let whole = number.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=EXACT).contains(x));
                *number = whole.map_or_else(|| number.clone(), |x| Number::from(x as u64));
            }
            _ => {}
        }
        match value {
            Value::Object(below) if SCHEMA.contains(&key.as_str()) => prepare(below, has_prefix_items)?,
            Value::Object(named) if BY_NAME.contains(&key.as_str()) => {
                for below in named.values_mut().filter_map(Value::as_object_mut) {
                    prepare(below, has_prefix_items)?;
                }
            }
            Value::Array(list) if LIST.contains(&key.as_str()) => {
                for below in list.iter_mut().filter_map(Value::as_object_mut) {
                    prepare(below, has_prefix_items)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A number in a value that would be written as another one: the library holds all of them as doubles.
fn inexact(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => {
            let is_exact = number.as_f64().is_some_and(|x| x.abs() < EXACT) || number.as_i64() == Some(EXACT as i64);
            (!is_exact).then_some(number)
        }
        Value::Array(values) => values.iter().find_map(inexact),
        Value::Object(fields) => fields.values().find_map(inexact),
        Value::Null | Value::Bool(_) | Value::String(_) => None,
    }
}

/// The bound itself where it is exact, else the next double inside; `side` is -1 for a lower bound and 1 for an upper one. What
/// is beyond 64-bit integers becomes the last of them, but for numbers that need not be integers.
fn bound_within(key: &str, bound: &Number, side: f64, is_number: bool) -> Result<Number, EngineError> {
    // From 2^53 on, which is also what the integer above it is rounded to.
    let Some(near) = bound.as_f64().filter(|x| x.abs() >= EXACT) else { return Ok(bound.clone()) };
    // Upwards for an upper bound.
    let outward = near * side;
    let inside = if bound.is_f64() || is_beyond(near, bound, side) { outward.next_down() } else { outward };
    let inside = if is_number { inside } else { inside.min(LARGEST) };
    if !is_number && inside < -LARGEST {
        return Err(EngineError::Constraint(format!("`{key}`: {bound} is beyond the integers that can be enforced")));
    }
    Ok(Number::from_f64(inside * side).unwrap_or_else(|| bound.clone()))
}

/// Whether the double nearest to an integer lies outside it.
fn is_beyond(near: f64, bound: &Number, side: f64) -> bool {
    // Of a double this large the conversion is exact.
    let near = near as i128;
    let exact = bound.as_i64().map(i128::from).or(bound.as_u64().map(i128::from));
    exact.is_some_and(|exact| if side > 0.0 { near > exact } else { near < exact })
}

/// A pointer into the schema without escapes: the library takes the parts of it as they are. One that cannot be written so stays, and the
/// library does not find it.
fn unescaped(pointer: &str) -> String {
    let plain = || {
        let parts = pointer.strip_prefix("#/")?.split('/').map(|part| {
            let part = percent_decode_str(part).decode_utf8().ok()?.replace("~1", "/").replace("~0", "~");
            (!part.contains('/')).then_some(part)
        });
        Some(format!("#/{}", parts.collect::<Option<Vec<_>>>()?.join("/")))
    };
    plain().unwrap_or_else(|| pointer.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(schema: Value) -> Result<Value, String> {
        let mut prepared = schema_with_options(&schema).map_err(|error| error.to_string())?;
        prepared.as_object_mut().and_then(|schema| schema.remove(OPTIONS_KEY));
        Ok(prepared)
    }

    #[test]
    fn bounds_are_never_wider() {
        let exact = 9_007_199_254_740_992_i64;
        for (given, taken) in [
            (json!({"minimum": exact, "maximum": exact}), json!({"minimum": exact, "maximum": exact})),
            (json!({"minimum": exact + 1}), json!({"minimum": 9_007_199_254_740_994.0})),
            (json!({"maximum": exact + 1}), json!({"maximum": 9_007_199_254_740_992.0})),
            (json!({"maximum": exact + 3}), json!({"maximum": 9_007_199_254_740_994.0})),
            (json!({"minimum": -exact - 1}), json!({"minimum": -9_007_199_254_740_992.0})),
            (json!({"maximum": i64::MAX, "minimum": i64::MIN}), json!({"maximum": LARGEST, "minimum": -LARGEST})),
            (json!({"maximum": u64::MAX}), json!({"maximum": LARGEST})),
            (
                json!({"exclusiveMaximum": 1e300, "exclusiveMinimum": -1e300}),
                json!({"exclusiveMaximum": LARGEST, "exclusiveMinimum": -LARGEST}),
            ),
            (json!({"type": "number", "maximum": 1e20}), json!({"type": "number", "maximum": 1e20_f64.next_down()})),
            (
                json!({"items": {"properties": {"a": {"maximum": 1e20}}}}),
                json!({"items": {"properties": {"a": {"maximum": LARGEST}}}}),
            ),
            (json!({"const": {"maximum": 5e20_f64.sqrt()}}), json!({"const": {"maximum": 5e20_f64.sqrt()}})),
        ] {
            // Not as values: 5.0 and 5 are not equal.
            let as_written = |value: &Value| value.to_string().replace(".0", "");
            assert_eq!(prepared(given.clone()).map(|it| as_written(&it)), Ok(as_written(&taken)), "{given}");
        }
    }

    #[test]
    fn what_would_not_be_enforced_is_named() {
        for (schema, named) in [
            (json!({"enum": []}), "`enum`"),
            (json!({"type": []}), "`type`"),
            (json!({"multipleOf": 0}), "`multipleOf`"),
            (json!({"anyOf": [{"multipleOf": -0.5}]}), "`multipleOf`"),
            (json!({"const": u64::MAX}), "`const`"),
            (json!({"enum": [1, {"a": [1e300]}]}), "`enum`"),
            (json!({"minimum": 1e19}), "`minimum`"),
            (json!({"exclusiveMaximum": -1e19}), "`exclusiveMaximum`"),
            (json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "items": [{}]}), "`items`"),
        ] {
            assert!(prepared(schema.clone()).is_err_and(|what| what.contains(named)), "{schema}");
        }
        // Neither is a schema.
        assert!(prepared(json!({"default": {"multipleOf": 0}, "properties": {"enum": {"const": []}}})).is_ok());
    }

    #[test]
    fn counts_and_pointers_as_the_library_writes_them() {
        assert_eq!(prepared(json!({"maxItems": 2.0, "minLength": 1})), Ok(json!({"maxItems": 2, "minLength": 1})));
        assert_eq!(prepared(json!({"maxItems": 2.5, "minItems": -1})), Ok(json!({"maxItems": 2.5, "minItems": -1})));
        for (given, taken) in [
            ("#/$defs/a", "#/$defs/a"),
            ("#/$defs/a~0b%25%20c", "#/$defs/a~b% c"),
            ("#/$defs/a~1b", "#/$defs/a~1b"),
            ("#/$defs/100%", "#/$defs/100%"),
            ("#/$defs/%ff", "#/$defs/%ff"),
            ("#/$defs/%é", "#/$defs/%é"),
            ("other.json#/a%20b", "other.json#/a%20b"),
        ] {
            assert_eq!(prepared(json!({"$ref": given})), Ok(json!({"$ref": taken})));
        }
    }
}
