//! `POST /v1/embeddings`, and what Ollama's embedding endpoints share with it.

use super::{
    App,
    completions::Prompt,
    fields::{Fields, items, wrong_type},
    parameters::labels,
};
use crate::{
    caller::Caller,
    error::ApiError,
    service::{Service, Target},
};
use axum::{Json, extract::State};
use edgelm_engine::{Pooling, unit_length};
use serde_json::{Value, json};
use std::sync::Arc;

/// OpenAI's limit.
const MAX_INPUTS: usize = 2048;

/// What to embed and how, checked.
#[derive(Debug)]
pub(crate) struct Embed {
    pub(super) param: &'static str,
    pub(super) inputs: Vec<Prompt>,
    pub(super) pooling: Pooling,
    /// Keep this many values, as of a Matryoshka embedding (arXiv:2205.13147).
    pub(super) dimensions: Option<usize>,
    /// Cut texts that are too long; else they are errors.
    pub(super) truncate: bool,
}

impl Embed {
    /// Vectors of length 1, and how many tokens were read.
    pub(crate) async fn run(
        self,
        service: &Service,
        caller: &Caller,
        target: Target,
    ) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
        let param = self.param;
        let width = service.backend.description().hidden_size;
        if let Some(dimensions) = self.dimensions.filter(|&wanted| wanted > width) {
            let what = format!("{dimensions} values were asked for, the model has {width}");
            return Err(ApiError::invalid("dimensions", what));
        }
        let embed = move |backend: &dyn crate::Backend| {
            let (mut vectors, mut total) = (Vec::with_capacity(self.inputs.len()), 0);
            for input in &self.inputs {
                let mut tokens = input.tokens(backend)?;
                if self.truncate {
                    tokens.truncate(backend.context());
                }
                total += tokens.len();
                let vector = backend.embed(&tokens, self.pooling, target.adapter.clone())?;
                vectors.push(match self.dimensions {
                    None => vector,
                    Some(kept) => {
                        let kept: Vec<f64> = vector.iter().take(kept).map(|&x| f64::from(x)).collect();
                        unit_length(&kept)
                    }
                });
            }
            Ok((vectors, total))
        };
        let embedded = service.beside(embed).await?.map_err(|error| ApiError::from_engine(&error, param))?;
        if let Some(meter) = &caller.meter {
            meter.spend(embedded.1);
        }
        Ok(embedded)
    }
}

/// A text, tokens, or an array of either.
pub(super) fn inputs(param: &'static str, value: Value) -> Result<Vec<Prompt>, ApiError> {
    let is_many = value.as_array().and_then(|all| all.first()).is_some_and(|one| one.is_string() || one.is_array());
    if !is_many {
        return Ok(vec![Prompt::parse(param, value)?]);
    }
    let values = items(param, value)?;
    if values.len() > MAX_INPUTS {
        return Err(ApiError::invalid(param, format!("{} texts, at most {MAX_INPUTS} are allowed", values.len())));
    }
    values.into_iter().map(|(name, value)| Prompt::parse(&name, value)).collect()
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Float,
    /// Of the bytes of little-endian f32 values.
    Base64,
}

/// A request, checked.
#[derive(Debug)]
pub(crate) struct Request {
    model: String,
    embed: Embed,
    encoding: Encoding,
}

impl Request {
    pub(crate) fn parse(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let inputs = inputs("input", fields.required("input")?)?;
        let dimensions = fields.count("dimensions", 1)?;
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                return Err(ApiError::invalid("encoding_format", format!("`{other}` is neither `float` nor `base64`")));
            }
        };
        let pooling = match fields.string("pooling")?.as_deref() {
            None | Some("last") => Pooling::Last,
            Some("mean") => Pooling::Mean,
            Some(other) => return Err(ApiError::invalid("pooling", format!("`{other}` is neither `last` nor `mean`"))),
        };
        labels(fields)?;
        fields.finish()?;
        Ok(Self { model, embed: Embed { param: "input", inputs, pooling, dimensions, truncate: false }, encoding })
    }
}

/// Embeds texts.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let Request { model, embed, encoding } = Request::parse(&mut fields)?;
    let target = service.target(&model)?;
    let (vectors, tokens) = embed.run(service, &caller, target).await?;
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = match encoding {
                Encoding::Float => json!(vector),
                Encoding::Base64 => base64(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into(),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "model": model, "data": data, "usage": usage})))
}

/// RFC 4648, with padding. Our own ten lines: nothing else here needs the encoding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let is_padding = digit > three.len();
            let index = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap_or(0);
            text.push(if is_padding { '=' } else { char::from(DIGITS[index]) });
        }
    }
    text
}

/// A list of texts alone, for APIs without tokens.
pub(super) fn texts(param: &'static str, value: Value) -> Result<Vec<Prompt>, ApiError> {
    match value {
        Value::String(text) => Ok(vec![Prompt::Text(text)]),
        Value::Array(_) => items(param, value)?
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok(Prompt::Text(text)),
                other => Err(wrong_type(&name, "a string", &other)),
            })
            .collect(),
        other => Err(wrong_type(param, "a string or an array of strings", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_specification() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn input_forms() {
        let count = |value| inputs("input", value).expect("valid").len();
        assert_eq!(count(json!("a")), 1);
        assert_eq!(count(json!(["a", "b"])), 2);
        assert_eq!(count(json!([1, 2])), 1);
        assert_eq!(count(json!([[1], [2, 3]])), 2);
        for bad in [json!(1), json!([["a"], 2]), json!([1, "a"]), json!({"a": 1})] {
            assert!(inputs("input", bad).is_err());
        }
    }
}
