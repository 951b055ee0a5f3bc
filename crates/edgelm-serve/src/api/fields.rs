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

/// The fields of a request not looked at yet. A field that is null counts as absent.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

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
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::MalformedBody("the body is not a JSON object".to_owned())),
            Err(error) => Err(ApiError::MalformedBody(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Takes a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::MissingParameter { param: name.to_owned() })
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "true or false", &other)),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(wrong_type(name, "an object", &other)),
        }
    }

    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(name, "a number", &value))?;
        if !range.contains(&number) {
            let what = format!("{number} is outside {} to {}", range.start(), range.end());
            return Err(ApiError::invalid(name, what));
        }
        Ok(Some(number as f32))
    }

    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| wrong_type(name, "an integer", &value))?;
        if !range.contains(&number) {
            let what = match *range.end() {
                i64::MAX => format!("{number} is below {}", range.start()),
                end => format!("{number} is outside {} to {end}", range.start()),
            };
            return Err(ApiError::invalid(name, what));
        }
        Ok(Some(number))
    }

    /// A count, at least `least`.
    pub(super) fn count(&mut self, name: &str, least: i64) -> Result<Option<usize>, ApiError> {
        Ok(self.integer(name, least..=i64::MAX)?.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// What is left over.
    pub(super) fn rest(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter().filter(|(_, value)| !value.is_null())
    }
}

/// "must be …, not …".
pub(super) fn wrong_type(name: &str, wanted: &str, got: &Value) -> ApiError {
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
