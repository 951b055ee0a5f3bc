//! Defaults for sampling that came with the model.

use super::json::{Keys, parse_object};
use crate::ModelError;
use edgelm_format::gguf::{Metadata, Value};
use std::path::Path;

/// Defaults for sampling that came with the model (generation_config.json, or `general.sampling.*` of GGUF).
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct GenerationConfig {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// From generation_config.json: the defaults, and the eos ids it names. Keys of other decoding methods are
    /// ignored: they are not defaults of anything done here.
    pub(crate) fn from_hf(bytes: &[u8], path: &Path) -> Result<(Self, Vec<u32>), ModelError> {
        let map = parse_object(bytes, path)?;
        let mut keys = Keys::new(path, "", &map);
        let number = |keys: &mut Keys<'_>, key: &'static str| match keys.number(key)? {
            Some(number) if number < 0.0 => Err(keys.bad(key, "must not be negative")),
            number => Ok(number.map(|number| number as f32)),
        };
        // 0 switches top-k off.
        let top_k = match keys.number("top_k")? {
            Some(0.0) => Some(0),
            _ => keys.size("top_k", u32::MAX as usize)?,
        };
        let config = Self {
            do_sample: keys.flag("do_sample")?,
            temperature: number(&mut keys, "temperature")?,
            top_k,
            top_p: number(&mut keys, "top_p")?,
            min_p: number(&mut keys, "min_p")?,
            repetition_penalty: number(&mut keys, "repetition_penalty")?,
            max_new_tokens: keys.size("max_new_tokens", u32::MAX as usize)?,
        };
        Ok((config, keys.token_ids("eos_token_id")?))
    }

    /// From `general.sampling.*`. Values of a wrong type count as absent: llama.cpp does the same.
    pub(crate) fn from_gguf(metadata: &Metadata) -> Self {
        let get = |name: &str| {
            metadata.iter().find(|(key, _)| key == &format!("general.sampling.{name}")).map(|(_, value)| value)
        };
        let number = |name: &str| get(name).and_then(Value::as_f64).map(|number| number as f32);
        let temperature = number("temp");
        Self {
            do_sample: temperature.map(|temperature| temperature > 0.0),
            temperature,
            top_k: get("top_k").and_then(Value::as_u64).and_then(|top_k| usize::try_from(top_k).ok()),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("penalty_repeat"),
            max_new_tokens: None,
        }
    }

    /// `general.sampling.*`, which llama.cpp takes as defaults. Nothing where the model is meant to decode greedily.
    pub(crate) fn to_gguf(&self) -> Metadata {
        if self.do_sample != Some(true) {
            return Metadata::new();
        }
        let top_k = self.top_k.and_then(|top_k| i32::try_from(top_k).ok()).map(Value::I32);
        [
            ("temp", self.temperature.or(Some(1.0)).map(Value::F32)),
            ("top_k", top_k),
            ("top_p", self.top_p.map(Value::F32)),
            ("min_p", self.min_p.map(Value::F32)),
            ("penalty_repeat", self.repetition_penalty.map(Value::F32)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((format!("general.sampling.{name}"), value?)))
        .collect()
    }
}
