//! `tools`, `tool_choice` and `parallel_tool_calls` of OpenAI's APIs.

use super::fields::{Fields, wrong_type};
use crate::{
    backend::Backend,
    error::ApiError,
    tools::{Choice, Tool, Toolbox},
};
use serde_json::{Value, json};

/// Which functions may be called, as clients say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(Vec<String>),
}

/// The toolbox of a request, if it has one that may be used. `flat` is how `/v1/responses` writes a function: its fields
/// beside `type` instead of under `function`.
pub(super) fn toolbox(fields: &mut Fields, flat: bool, backend: &dyn Backend) -> Result<Option<Toolbox>, ApiError> {
    let values = fields.items("tools")?.unwrap_or_default();
    let tools: Vec<Tool> =
        values.into_iter().map(|(param, value)| tool(Fields::of(param, value)?, flat)).collect::<Result<_, _>>()?;
    let parallel = fields.boolean("parallel_tool_calls")?;
    let choice_param = fields.name("tool_choice");
    let choice = match fields.take("tool_choice") {
        None => None,
        Some(value) => Some(tool_choice(&choice_param, value, flat)?),
    };
    if tools.is_empty() {
        return match choice {
            None | Some(ToolChoice::None | ToolChoice::Auto) => Ok(None),
            Some(_) => Err(ApiError::invalid(choice_param, "there are no `tools` to choose from")),
        };
    }
    build(
        backend,
        &fields.name("tools"),
        &choice_param,
        tools,
        choice.unwrap_or(ToolChoice::Auto),
        parallel.unwrap_or(true),
    )
}

/// Checks a choice against the tools.
pub(super) fn build(
    backend: &dyn Backend,
    param: &str,
    choice_param: &str,
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
) -> Result<Option<Toolbox>, ApiError> {
    let (choice, only, parallel) = match choice {
        ToolChoice::None => return Ok(None),
        ToolChoice::Auto => (Choice::Auto, Vec::new(), parallel),
        ToolChoice::Required => (Choice::Required, Vec::new(), parallel),
        // One function by name is one call.
        ToolChoice::Named(names) => (Choice::Required, names, false),
    };
    if let Some(name) = only.iter().find(|name| tools.iter().all(|tool| tool.name != **name)) {
        return Err(ApiError::invalid(choice_param, format!("`{name}` is not among `{param}`")));
    }
    Toolbox::new(backend, param, tools, &only, choice, parallel).map(Some)
}

fn tool(mut fields: Fields, flat: bool) -> Result<Tool, ApiError> {
    let kind = fields.required_string("type")?;
    if kind != "function" {
        let why = Some(format!("`{kind}` is; only functions are taken"));
        return Err(ApiError::UnsupportedParameter { param: fields.name("type"), why });
    }
    if flat {
        return function(fields);
    }
    let missing = ApiError::MissingParameter { param: fields.name("function") };
    let tool = function(fields.inner("function")?.ok_or(missing)?)?;
    fields.finish()?;
    Ok(tool)
}

fn function(mut fields: Fields) -> Result<Tool, ApiError> {
    let name = function_name(&mut fields)?;
    let description = fields.string("description")?;
    let parameters = schema(&mut fields, "parameters")?;
    let strict = fields.boolean("strict")?.unwrap_or(false);
    fields.finish()?;
    Ok(Tool { name, description, parameters, strict })
}

/// OpenAI's rule for names.
pub(super) fn function_name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.required_string("name")?;
    let is_word = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(is_word) {
        let what = "must be 1 to 128 letters, digits, `_`, `-` or `.`";
        return Err(ApiError::invalid(fields.name("name"), what));
    }
    Ok(name)
}

/// The schema of a function's arguments; without one, it takes none.
pub(super) fn schema(fields: &mut Fields, name: &str) -> Result<Value, ApiError> {
    match fields.object(name)? {
        None => Ok(json!({"type": "object", "properties": {}})),
        Some(mut schema) => {
            if schema.is_empty() {
                schema.insert("type".to_owned(), "object".into());
            }
            match schema.get("type") {
                None => {}
                Some(kind) if kind == "object" => {}
                Some(_) => {
                    return Err(ApiError::invalid(fields.name(name), "must be the schema of an object"));
                }
            }
            Ok(schema.into())
        }
    }
}

fn tool_choice(param: &str, value: Value, flat: bool) -> Result<ToolChoice, ApiError> {
    let mut fields = match value {
        Value::String(word) => {
            return match word.as_str() {
                "none" => Ok(ToolChoice::None),
                "auto" => Ok(ToolChoice::Auto),
                "required" => Ok(ToolChoice::Required),
                _ => Err(ApiError::invalid(param, format!("`{word}` is none of `none`, `auto` and `required`"))),
            };
        }
        Value::Object(_) => Fields::of(param, value)?,
        other => return Err(wrong_type(param, "a string or an object", &other)),
    };
    let kind = fields.required_string("type")?;
    if kind != "function" {
        let why = Some(format!("`{kind}` is"));
        return Err(ApiError::UnsupportedParameter { param: fields.name("type"), why });
    }
    let name = if flat {
        fields.required_string("name")?
    } else {
        let missing = ApiError::MissingParameter { param: fields.name("function") };
        let mut function = fields.inner("function")?.ok_or(missing)?;
        let name = function.required_string("name")?;
        function.finish()?;
        name
    };
    fields.finish()?;
    Ok(ToolChoice::Named(vec![name]))
}
