//! A JSON body, read field by field: what is left at the end was not understood, and is refused by name.

use super::App;
use crate::error::ApiError;
use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use serde_json::{Map, Value};
use std::{ops::RangeInclusive, sync::Arc};

/// The fields of an object not looked at yet. A field that is null counts as absent.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// In front of a field's name in errors: where in the request this object stands.
    path: String,
    /// Every name that was looked for, for the test that compares them with the OpenAPI document.
    asked: Vec<String>,
    /// Those of them that are known but refused.
    refused: Vec<String>,
}

impl FromRequest<Arc<App>> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // Slow senders must not hold connections for ever.
        let body = tokio::time::timeout(app.body_timeout, Bytes::from_request(request, app))
            .await
            .map_err(|_| ApiError::BodyTimeout)?
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { limit_bytes: app.body_limit_bytes },
                _ => ApiError::MalformedBody("the body ended early".to_owned()),
            })?;
        Self::parse(&body)
    }
}

impl Fields {
    /// The body must be a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Ok(Self { values, ..Self::default() }),
            Ok(_) => Err(ApiError::MalformedBody("the body is not a JSON object".to_owned())),
            Err(error) => Err(ApiError::MalformedBody(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// The fields of `value`, which stands at `path` of the request.
    pub(crate) fn of(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(values) => Ok(Self { values, path, ..Self::default() }),
            other => Err(wrong_type(&path, "an object", &other)),
        }
    }

    /// A field's name as errors write it: `messages[0].content`.
    pub(crate) fn name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where this object stands in the request.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A field's value, which stays: null where there is none.
    pub(crate) fn peek(&self, name: &str) -> Value {
        self.values.get(name).cloned().unwrap_or_default()
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.asked.push(name.to_owned());
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::MissingParameter { param: self.name(name) })
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        match self.required(name)? {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&self.name(name), "a string", &other)),
        }
    }

    /// An object inside, as fields of its own.
    pub(crate) fn inner(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.name(name);
        self.take(name).map(|value| Self::of(path, value)).transpose()
    }

    /// An array, each item with its name.
    pub(crate) fn items(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, ApiError> {
        let path = self.name(name);
        self.take(name).map(|value| items(&path, value)).transpose()
    }

    /// The names that are honoured and those that are refused, each in order.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> [Vec<String>; 2] {
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names.dedup();
            names
        };
        let refused = sorted(self.refused.clone());
        [sorted(self.asked.iter().filter(|name| !refused.contains(name)).cloned().collect()), refused]
    }

    /// Everything must have been looked at.
    pub(crate) fn finish(&mut self) -> Result<(), ApiError> {
        self.finish_but(&[])
    }

    /// The same, but fields in the table are known: their values may pass if they ask for nothing.
    pub(crate) fn finish_but(&mut self, refused: &[Refused]) -> Result<(), ApiError> {
        self.refuse(refused)?;
        match self.values.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::UnknownParameter { param: self.name(name) }),
            None => Ok(()),
        }
    }

    /// Treats `false` as absent, in a field whose values are otherwise of another type.
    pub(crate) fn false_is_absent(&mut self, name: &str) {
        if self.values.get(name) == Some(&Value::Bool(false)) {
            self.take(name);
        }
    }

    /// Takes the fields of a table out.
    pub(crate) fn refuse(&mut self, refused: &[Refused]) -> Result<(), ApiError> {
        for (name, asks_nothing) in refused {
            self.refused.push((*name).to_owned());
            if let Some(value) = self.take(name)
                && !asks_nothing(&value)
            {
                return Err(ApiError::UnsupportedParameter { param: self.name(name), why: None });
            }
        }
        Ok(())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.name(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.name(name), "true or false", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(wrong_type(&self.name(name), "an object", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(&self.name(name), "a number", &value))?;
        if !range.contains(&number) {
            let what = format!("{number} is outside {} to {}", range.start(), range.end());
            return Err(ApiError::invalid(self.name(name), what));
        }
        Ok(Some(number as f32))
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| wrong_type(&self.name(name), "an integer", &value))?;
        if !range.contains(&number) {
            let what = match *range.end() {
                i64::MAX => format!("{number} is below {}", range.start()),
                end => format!("{number} is outside {} to {end}", range.start()),
            };
            return Err(ApiError::invalid(self.name(name), what));
        }
        Ok(Some(number))
    }

    /// A count, at least `least`.
    pub(crate) fn count(&mut self, name: &str, least: i64) -> Result<Option<usize>, ApiError> {
        Ok(self.integer(name, least..=i64::MAX)?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }
}

/// A field that is known and refused, with the test for values that ask for nothing.
pub(crate) type Refused = (&'static str, fn(&Value) -> bool);

/// For fields of which every value asks for something.
pub(crate) fn never(_: &Value) -> bool {
    false
}

pub(crate) fn is_false(value: &Value) -> bool {
    value == false
}

pub(crate) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(Map::is_empty)
        || value.as_str().is_some_and(str::is_empty)
}

pub(crate) fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

pub(crate) fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

/// The items of an array, each with its name.
pub(crate) fn items(path: &str, value: Value) -> Result<Vec<(String, Value)>, ApiError> {
    match value {
        Value::Array(items) => {
            Ok(items.into_iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)).collect())
        }
        other => Err(wrong_type(path, "an array", &other)),
    }
}

/// "must be …, not …".
pub(crate) fn wrong_type(name: &str, wanted: &str, got: &Value) -> ApiError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ApiError::invalid(name, format!("must be {wanted}, not {got}"))
}
