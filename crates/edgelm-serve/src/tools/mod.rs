//! Functions that a model may call: what clients say about them, how models write calls, and how calls are read.
//!
//! Every family of models writes calls in a [`Form`] of its own, told by its chat template. Models whose template knows
//! nothing of tools get a description in the prompt ([`generic`]). Where a client asks for certainty (`required`, one
//! function by name, a `strict` one), a grammar enforces the form and the functions' schemas.

mod form;
mod generic;
mod grammar;
mod reader;

pub(crate) use form::Form;
pub(crate) use reader::{Part, Reader, held_back};

use crate::{backend::Backend, error::ApiError, service::random};
use edgelm_model::Message;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// One function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments, an object.
    pub(crate) parameters: Value,
    /// Calls must validate against the schema.
    pub(crate) strict: bool,
}

impl Tool {
    /// As templates expect it: OpenAI's definition.
    fn definition(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = self.parameters.clone();
        json!({"type": "function", "function": function})
    }
}

/// Whether functions may or must be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
}

/// The functions of a request, and how the model writes calls.
#[derive(Debug, Clone)]
pub(crate) struct Toolbox {
    /// Those shown to the model.
    pub(crate) tools: Arc<[Tool]>,
    /// Those it may call: all, or the one the client names.
    pub(crate) allowed: Arc<[Tool]>,
    pub(crate) choice: Choice,
    /// Several calls in one answer.
    pub(crate) parallel: bool,
    pub(crate) form: Form,
}

impl Toolbox {
    /// `only` names the functions that may be called, all if empty; `param` is the field that holds `tools`.
    pub(crate) fn new(
        backend: &dyn Backend,
        param: &str,
        tools: Vec<Tool>,
        only: &[String],
        choice: Choice,
        parallel: bool,
    ) -> Result<Self, ApiError> {
        let form =
            Form::of_template(backend.description().chat_template.as_deref().unwrap_or_default()).ok_or_else(|| {
                let why = Some("the model's template writes calls in a form that is not known here".to_owned());
                ApiError::UnsupportedParameter { param: param.to_owned(), why }
            })?;
        for (index, tool) in tools.iter().enumerate() {
            if tools[..index].iter().any(|other| other.name == tool.name) {
                return Err(ApiError::invalid(param, format!("the function `{}` is given twice", tool.name)));
            }
        }
        let allowed = tools.iter().filter(|tool| only.is_empty() || only.contains(&tool.name)).cloned().collect();
        Ok(Self { tools: tools.into(), allowed, choice, parallel, form })
    }

    /// Adds the functions to what the template sees, or to the messages themselves.
    pub(crate) fn introduce(&self, messages: &mut Vec<Message>, arguments: &mut Map<String, Value>) {
        if self.form.is_in_template {
            arguments.insert("tools".to_owned(), self.tools.iter().map(Tool::definition).collect());
        } else {
            generic::introduce(&self.tools, messages);
        }
    }
}

/// A function that the model calls.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: Map<String, Value>,
}

impl Call {
    /// The arguments as JSON text, which is how OpenAI sends them.
    pub(crate) fn arguments_text(&self) -> String {
        Value::Object(self.arguments.clone()).to_string()
    }
}

/// An unpredictable id. Nine letters and digits, because templates of Mistral's models accept nothing else.
fn new_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest = random();
    (0..9)
        .map(|_| {
            let digit = usize::try_from(rest % 36).unwrap_or(0);
            rest /= 36;
            char::from(DIGITS[digit])
        })
        .collect()
}

/// Messages of tools and calls in a conversation without `tools`: templates that know nothing of them would drop them.
pub(crate) fn rewrite_history(backend: &dyn Backend, messages: &mut Vec<Message>) {
    let template = backend.description().chat_template.as_deref().unwrap_or_default();
    if Form::of_template(template).is_none_or(|form| !form.is_in_template) {
        generic::rewrite(messages);
    }
}
