//! The grammar of answers with calls, for clients that ask for certainty.

use super::{Choice, Form, Tool, Toolbox};
use crate::{api::Wanted, backend::Backend, error::ApiError};
use edgelm_engine::{Constraint, schema_with_options};
use serde_json::{Value, json};

impl Toolbox {
    /// What the answer must be, if anything: calls where they are required, and valid ones where a function is `strict`
    /// or calls must not be several. `content` is what the answer must be where it is not a call. `param` is the field
    /// that holds `tools`.
    pub(crate) fn constraint(
        &self,
        backend: &dyn Backend,
        param: &str,
        content: Option<Wanted>,
    ) -> Result<Option<Wanted>, ApiError> {
        let is_required = self.choice == Choice::Required;
        let is_strict = self.allowed.iter().any(|tool| tool.strict);
        if !is_required && !is_strict && self.parallel && content.is_none() {
            return Ok(None);
        }
        let content = match content {
            _ if is_required => None,
            None => None,
            Some(Wanted { constraint: Constraint::JsonSchema(schema), param }) => Some(json_rule(&param, &schema)?),
            Some(Wanted { constraint: Constraint::JsonObject, param }) => {
                Some(json_rule(&param, &json!({"type": "object"}))?)
            }
            Some(Wanted { param, .. }) => {
                let why = Some("beside `tools`, only JSON is".to_owned());
                return Err(ApiError::UnsupportedParameter { param, why });
            }
        };
        let lark = self.lark(backend, param, content.as_deref())?;
        Ok(Some(Wanted { param: param.to_owned(), constraint: Constraint::Lark(lark) }))
    }

    fn lark(&self, backend: &dyn Backend, param: &str, content: Option<&str>) -> Result<String, ApiError> {
        let Form { open, close, is_list, .. } = self.form;
        let opener = mark(backend, open);
        let is_control = backend.control_token(open).is_some();
        let mut rules = Vec::new();
        for (index, tool) in self.allowed.iter().enumerate() {
            rules.push(format!("call_{index}: {}", self.call(backend, param, tool)?));
        }
        let calls: Vec<String> = (0..self.allowed.len()).map(|index| format!("call_{index}")).collect();
        rules.push(format!("call: {}", calls.join(" | ")));
        // What follows the mark that begins a call.
        let body = match (is_list, self.parallel) {
            (true, true) => "\"[\" call (\", \" call)* \"]\"".to_owned(),
            (true, false) => "\"[\" call \"]\"".to_owned(),
            (false, _) if close.is_empty() => "call".to_owned(),
            (false, _) => format!("\"\\n\" call \"\\n\" {}", mark(backend, close)),
        };
        rules.push(format!("body: {body}"));
        let one = if open.is_empty() { "body".to_owned() } else { format!("{opener} body") };
        let between = match () {
            () if open.is_empty() => "\"; \"",
            () if close.is_empty() => "",
            () => "\"\\n\"",
        };
        let several = !is_list && self.parallel;
        let calls = if several { format!("{one} ({between} {one})*") } else { one };
        let start = match (&self.choice, content) {
            (Choice::Required, _) => calls,
            (Choice::Auto, Some(json)) => {
                rules.push(format!("content: {json}"));
                format!("content | {calls}")
            }
            (Choice::Auto, None) if open.is_empty() => {
                rules.push("TEXT: /([^{\\s](.|\\n)*)?/".to_owned());
                format!("TEXT | {calls}")
            }
            (Choice::Auto, None) => {
                rules.push("TEXT: /(.|\\n)*/".to_owned());
                rules.push("tail: TEXT".to_owned());
                // A lazy rule ends as soon as the mark is complete, so that no text can go past one.
                match is_control {
                    true => rules.push(format!("head: TEXT {opener}")),
                    false => rules.push(format!("head[lazy]: TEXT {opener}")),
                }
                if several { "(head body)* tail".to_owned() } else { "tail | head body".to_owned() }
            }
        };
        Ok(format!("start: {start}\n{}\n", rules.join("\n")))
    }

    /// One call: its name is given, its arguments follow the schema.
    fn call(&self, backend: &dyn Backend, param: &str, tool: &Tool) -> Result<String, ApiError> {
        let arguments = json_rule(param, &tool.parameters)?;
        let name = Value::from(tool.name.as_str()).to_string();
        Ok(match self.form.separator {
            Some(separator) => format!("{name} {} {arguments}", mark(backend, separator)),
            None => {
                let before = format!("{{\"name\": {name}, \"{}\": ", self.form.arguments);
                format!("{} {arguments} \"}}\"", Value::from(before))
            }
        })
    }
}

/// A mark: a control token by its id, or plain text.
fn mark(backend: &dyn Backend, text: &str) -> String {
    match backend.control_token(text) {
        Some(id) => format!("<[{id}]>"),
        None => Value::from(text).to_string(),
    }
}

fn json_rule(param: &str, schema: &Value) -> Result<String, ApiError> {
    let schema = schema_with_options(schema).map_err(|error| ApiError::from_constraint(&error, param))?;
    Ok(format!("%json {schema}"))
}
