//! Schemas that refer to themselves so that no value of them ever ends.
//!
//! `{"$defs": {"a": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}}}}` describes no value, only
//! a text that goes on for ever. The library takes it, and an answer is cut at its token limit in the middle. Which references
//! end is a least fixed point: none does at first; then those of which a value can be built from those that do, until nothing
//! changes. It is the test for productive symbols of context-free grammars (Hopcroft and Ullman 1979, §4.4).

use crate::EngineError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

type Schema = Map<String, Value>;

/// Schemas that are looked at: far more than a schema in use has, and some tenths of a second.
const MAX_VISITS: usize = 1 << 21;

/// References by their pointers, and whether a value of what they point at can end.
#[derive(Default)]
struct References {
    /// In the order in which they were found.
    order: Vec<String>,
    ends: BTreeMap<String, bool>,
    visits: usize,
}

/// An error where an answer could go into a reference that never ends.
///
/// # Errors
/// [`EngineError::Constraint`], which names the reference; also where the schema is too large to tell.
pub(super) fn refuse(root: &Schema) -> Result<(), EngineError> {
    let mut references = References::default();
    references.collect(root, root)?;
    // From the last on: most of what a reference needs is found after it, so this settles nearly all at once.
    loop {
        let mut has_changed = false;
        for index in (0..references.order.len()).rev() {
            let pointer = &references.order[index];
            if references.ends.get(pointer).is_some_and(|&ends| ends) {
                continue;
            }
            if let Some(target) = resolved(root, pointer)
                && references.ends(target)?
            {
                let pointer = references.order[index].clone();
                references.ends.insert(pointer, true);
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    match references.order.iter().find(|pointer| references.ends.get(*pointer) == Some(&false)) {
        Some(pointer) => Err(EngineError::Constraint(format!(
            "`$ref` `{pointer}`: each value of it must hold another one, so that none ever ends"
        ))),
        None => Ok(()),
    }
}

impl References {
    /// All references that an answer can come to.
    fn collect<'a>(&mut self, root: &'a Schema, from: &'a Schema) -> Result<(), EngineError> {
        let mut open = vec![from];
        while let Some(schema) = open.pop() {
            self.visit()?;
            if let Some(pointer) = schema.get("$ref").and_then(Value::as_str)
                && !self.ends.contains_key(pointer)
                && let Some(target) = resolved(root, pointer)
            {
                self.ends.insert(pointer.to_owned(), false);
                self.order.push(pointer.to_owned());
                open.push(target);
            }
            for (key, value) in schema {
                match (key.as_str(), value) {
                    ("additionalItems" | "additionalProperties" | "items", Value::Object(below)) => open.push(below),
                    ("patternProperties" | "properties", Value::Object(named)) => {
                        open.extend(named.values().filter_map(Value::as_object));
                    }
                    ("allOf" | "anyOf" | "items" | "oneOf" | "prefixItems", Value::Array(list)) => {
                        open.extend(list.iter().filter_map(Value::as_object));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Whether a value can end, by what is known of references so far.
    fn ends(&mut self, schema: &Schema) -> Result<bool, EngineError> {
        let mut visits = self.visits;
        let ends = self.value_ends(schema, &mut visits);
        self.visits = visits;
        match visits > MAX_VISITS {
            true => Err(too_large()),
            false => Ok(ends),
        }
    }

    fn visit(&mut self) -> Result<(), EngineError> {
        self.visits += 1;
        match self.visits > MAX_VISITS {
            true => Err(too_large()),
            false => Ok(()),
        }
    }

    fn value_ends(&self, schema: &Schema, visits: &mut usize) -> bool {
        *visits += 1;
        if *visits > MAX_VISITS {
            return false;
        }
        let pointer = schema.get("$ref").and_then(Value::as_str);
        if pointer.and_then(|pointer| self.ends.get(pointer)).is_some_and(|&ends| !ends) {
            return false;
        }
        let mut below = |value: &Value| value.as_object().is_none_or(|schema| self.value_ends(schema, visits));
        let list = |key: &str| schema.get(key).and_then(Value::as_array);
        if list("allOf").is_some_and(|all| !all.iter().all(&mut below)) {
            return false;
        }
        for key in ["anyOf", "oneOf"] {
            if list(key).is_some_and(|any| !any.iter().any(&mut below)) {
                return false;
            }
        }
        if schema.contains_key("const") || schema.contains_key("enum") {
            return true;
        }
        let mut of_type = |name: &str| match name {
            "object" => object_ends(schema, &mut below),
            "array" => array_ends(schema, &mut below),
            _ => true,
        };
        match schema.get("type") {
            Some(Value::String(name)) => of_type(name),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(of_type),
            _ => true,
        }
    }
}

/// What it has to have.
fn object_ends(schema: &Schema, ends: &mut impl FnMut(&Value) -> bool) -> bool {
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    required.all(|name| {
        let named = properties.and_then(|properties| properties.get(name));
        named.or_else(|| schema.get("additionalProperties")).is_none_or(&mut *ends)
    })
}

/// The items that it has to have.
fn array_ends(schema: &Schema, ends: &mut impl FnMut(&Value) -> bool) -> bool {
    let least = schema.get("minItems").and_then(Value::as_f64).unwrap_or(0.0);
    let (first, rest) = match schema.get("items") {
        // Of an older draft.
        Some(Value::Array(list)) => (list.as_slice(), schema.get("additionalItems")),
        items => (schema.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice), items),
    };
    let mut needed = first.iter().zip(0u32..).take_while(|(_, index)| f64::from(*index) < least);
    needed.all(|(item, _)| ends(item)) && (least <= first.len() as f64 || rest.is_none_or(ends))
}

/// What a pointer within the schema points at; others the library finds, or refuses.
fn resolved<'a>(root: &'a Schema, pointer: &str) -> Option<&'a Schema> {
    let path = pointer.strip_prefix('#')?;
    if path.is_empty() {
        return Some(root);
    }
    let mut parts = path.strip_prefix('/')?.split('/');
    let mut value = root.get(parts.next()?)?;
    for part in parts {
        value = match value {
            Value::Object(fields) => fields.get(part)?,
            Value::Array(list) => list.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    value.as_object()
}

fn too_large() -> EngineError {
    EngineError::Constraint("the schema's references are too many to follow".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(schema: &Value) -> Option<String> {
        let Value::Object(schema) = schema else { panic!("an object") };
        refuse(schema).err().map(|error| error.to_string())
    }

    fn object(field: &Value, required: &[&str]) -> Value {
        json!({"type": "object", "properties": {"a": field}, "required": required})
    }

    #[test]
    fn what_can_end_is_taken() {
        let to = |name: &str| json!({"$ref": format!("#/$defs/{name}")});
        for schema in [
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
            object(&json!({"anyOf": [{"type": "null"}, {"$ref": "#"}]}), &["a"]),
            object(&json!({"type": "array", "items": {"$ref": "#"}}), &["a"]),
            object(&json!({"type": "array", "items": {"$ref": "#"}, "prefixItems": [{}], "minItems": 1}), &["a"]),
            json!({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            json!({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            json!({"$defs": {"a": object(&to("b"), &["a"]), "b": {"oneOf": [to("a"), {"const": 1}]}}, "$ref": "#/$defs/a"}),
            // Nothing leads there.
            json!({"$defs": {"a": object(&to("a"), &["a"])}, "type": "string"}),
            // The library says that these are not there.
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "other.json#/a"}),
        ] {
            assert_eq!(refused(&schema), None, "{schema}");
        }
    }

    #[test]
    fn what_cannot_end_is_named() {
        let to = |name: &str| json!({"$ref": format!("#/$defs/{name}")});
        for (schema, named) in [
            (object(&json!({"$ref": "#"}), &["a"]), "`#`"),
            (json!({"$defs": {"a": to("a")}, "$ref": "#/$defs/a"}), "`#/$defs/a`"),
            (
                json!({"$defs": {"a": object(&to("b"), &["a"]), "b": object(&to("a"), &["a"])}, "$ref": "#/$defs/a"}),
                "#/$defs/",
            ),
            // An answer need not go there, but may.
            (
                json!({"$defs": {"b": object(&to("b"), &["a"])}, "type": "object", "properties": {"a": to("b")}}),
                "`#/$defs/b`",
            ),
            (json!({"$defs": {"b": object(&to("b"), &["a"])}, "anyOf": [{"const": 1}, to("b")]}), "`#/$defs/b`"),
            (
                json!({"$defs": {"l": {"type": "array", "items": to("l"), "minItems": 1}}, "$ref": "#/$defs/l"}),
                "#/$defs/l",
            ),
            (
                json!({"$defs": {"l": {"type": "array", "prefixItems": [{}, to("l")], "minItems": 2}}, "$ref": "#/$defs/l"}),
                "l",
            ),
            (
                json!({"$defs": {"b": {"type": "object", "additionalProperties": to("b"), "required": ["x"]}}, "$ref": "#/$defs/b"}),
                "b",
            ),
            (
                json!({"$defs": {"b": {"allOf": [{"type": "object"}, object(&to("b"), &["a"])]}}, "$ref": "#/$defs/b"}),
                "b",
            ),
            (json!({"$defs": {"b": {"anyOf": [to("b"), object(&to("b"), &["a"])]}}, "$ref": "#/$defs/b"}), "b"),
        ] {
            assert!(refused(&schema).is_some_and(|what| what.contains(named)), "{schema}");
        }
    }

    #[test]
    fn long_chains_take_little() {
        let many = 50_000;
        let chain = |last: Value| {
            let mut named: Map<String, Value> = (0..many)
                .map(|index| (format!("d{index}"), object(&json!({"$ref": format!("#/$defs/d{}", index + 1)}), &["a"])))
                .collect();
            named.insert(format!("d{many}"), last);
            json!({"$defs": named, "$ref": "#/$defs/d0"})
        };
        assert_eq!(refused(&chain(json!({"type": "null"}))), None);
        assert!(refused(&chain(json!({"$ref": "#/$defs/d0"}))).is_some());
    }
}
