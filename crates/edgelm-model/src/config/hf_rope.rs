//! Rotary parameters of config.json: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters` (5).

use super::{QueryGrowth, RopeConfig, RopeScaling, json::Keys, limits::MAX_CONTEXT, rope::yarn_mscale};
use crate::{Arch, ModelError};
use serde_json::{Map, Value};
use std::path::Path;

const TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope, proportional";

/// Parameters that some rope type reads: transformers ignores them where the type at hand does not.
const PARAMETERS: &[&str] = &[
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
    // Which components follow which of a picture's axes: the positions of text are the same on all.
    "mrope_interleaved",
    "mrope_section",
    "short_factor",
    "long_factor",
];

/// What rotary parameters follow from beside their own keys.
struct Model<'a> {
    path: &'a Path,
    arch: &'a Arch,
    head_dim: usize,
    max_position_embeddings: usize,
    /// Keys outside the object, which one inside it wins over.
    theta: f64,
    original: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

/// Reads the rotary keys of `keys`: for all layers, or for those without and those with a sliding window. As in
/// transformers, `rope_scaling` wins over `rope_parameters`, and a theta inside over one outside.
pub(super) fn read(
    keys: &mut Keys<'_>,
    path: &Path,
    arch: &Arch,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<(RopeConfig, Option<RopeConfig>), ModelError> {
    let theta = keys.positive("rope_theta")?.unwrap_or(arch.defaults.rope_theta);
    let model = Model {
        path,
        arch,
        head_dim,
        max_position_embeddings,
        theta,
        original: keys.size("original_max_position_embeddings", MAX_CONTEXT)?,
        partial_rotary_factor: read_partial(keys, arch)?,
    };
    let local_theta = match arch.defaults.local_rope_theta {
        Some(theta) => Some(keys.positive("rope_local_base_freq")?.unwrap_or(theta)),
        None => None,
    };
    let (scaling, parameters) = (keys.get("rope_scaling"), keys.get("rope_parameters"));
    let (name, value) = match (scaling, parameters) {
        (Some(value), _) => ("rope_scaling", value),
        (None, Some(value)) => ("rope_parameters", value),
        (None, None) => ("rope_parameters", &Value::Null),
    };
    let empty = Map::new();
    let object = |value: &'_ Value| match value {
        Value::Object(map) => Ok(map.clone()),
        Value::Null => Ok(empty.clone()),
        _ => Err(keys.bad(name, "must be an object")),
    };
    let map = object(value)?;
    if let (Some(full), Some(sliding)) = (map.get("full_attention"), map.get("sliding_attention")) {
        let part = |kind: &str, value| model.read(&format!("{name}.{kind}."), &object(value)?);
        let (full, sliding) = (part("full_attention", full)?, part("sliding_attention", sliding)?);
        if map.len() > 2 {
            return Err(keys.bad(name, "must have parameters for full_attention and sliding_attention alone"));
        }
        let local = (full != sliding).then_some(sliding);
        return Ok((full, local));
    }
    let global = model.read(&format!("{name}."), &map)?;
    let local = local_theta.map(|theta| RopeConfig { theta, scaling: RopeScaling::Default, ..global.clone() });
    Ok((global, local))
}

/// `partial_rotary_factor`, where the family has one.
fn read_partial(keys: &mut Keys<'_>, arch: &Arch) -> Result<Option<f64>, ModelError> {
    match keys.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 && arch.defaults.partial_rotary_factor.is_none() => {
            Err(keys.bad("partial_rotary_factor", "only 1 is supported for this architecture"))
        }
        Some(factor) if !(factor > 0.0 && factor <= 1.0) => {
            Err(keys.bad("partial_rotary_factor", "must be above 0 and at most 1"))
        }
        factor => Ok(factor),
    }
}

impl Model<'_> {
    /// One object of rotary parameters.
    fn read(&self, within: &str, map: &Map<String, Value>) -> Result<RopeConfig, ModelError> {
        let mut keys = Keys::new(self.path, within, map);
        let defaults = &self.arch.defaults;
        let partial = read_partial(&mut keys, self.arch)?.or(self.partial_rotary_factor);
        let partial = partial.or(defaults.partial_rotary_factor).unwrap_or(1.0);
        let theta = keys.positive("rope_theta")?.unwrap_or(self.theta);
        let old_name = keys.text("type")?;
        let rope_type = keys.text("rope_type")?.or(old_name).unwrap_or("default");
        let original = match self.original {
            Some(original) => original,
            None => keys.size("original_max_position_embeddings", MAX_CONTEXT)?.unwrap_or(self.max_position_embeddings),
        };
        // Rounded down, as transformers does.
        let mut rotary_dim = (self.head_dim as f64 * partial) as usize;
        let scaling = match rope_type {
            "proportional" => {
                let pairs = rotary_dim / 2;
                rotary_dim = self.head_dim;
                RopeScaling::Proportional { pairs, factor: keys.positive("factor")?.unwrap_or(1.0) }
            }
            _ => read_scaling(&mut keys, rope_type, self.max_position_embeddings, original)?,
        };
        let growth = |beta| QueryGrowth { beta, original_max_position_embeddings: original };
        let query_growth = keys.number("llama_4_scaling_beta")?.map(growth);
        keys.finish(&[PARAMETERS])?;
        Ok(RopeConfig { theta, rotary_dim, pairs: self.arch.hf_rope_pairs, reversed: false, scaling, query_growth })
    }
}

fn required_by(keys: &Keys<'_>, key: &str, rope_type: &str) -> ModelError {
    keys.bad(key, &format!("rope type `{rope_type}` needs it"))
}

fn read_scaling(
    keys: &mut Keys<'_>,
    rope_type: &str,
    max_position_embeddings: usize,
    original_max_position_embeddings: usize,
) -> Result<RopeScaling, ModelError> {
    if !keys.has("rope_type") && !keys.has("type") && keys.has("factor") {
        return Err(keys.bad("rope_type", "a scaling factor without a type has no meaning"));
    }
    let required =
        |keys: &mut Keys<'_>, key: &'static str| keys.positive(key)?.ok_or_else(|| required_by(keys, key, rope_type));
    Ok(match rope_type {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: required(keys, "factor")? },
        "dynamic" => {
            let factor = required(keys, "factor")?;
            if factor < 1.0 {
                return Err(keys.bad("factor", "must be at least 1"));
            }
            // Unlike the other types, this one counts from `max_position_embeddings`.
            RopeScaling::Dynamic { factor, original_max_position_embeddings: max_position_embeddings }
        }
        "llama3" => {
            let factor = required(keys, "factor")?;
            let low_freq_factor = required(keys, "low_freq_factor")?;
            let high_freq_factor = required(keys, "high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(keys.bad("high_freq_factor", "must be above `low_freq_factor`"));
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }
        }
        "yarn" => {
            let ratio = max_position_embeddings as f64 / original_max_position_embeddings as f64;
            let factor = keys.positive("factor")?.unwrap_or(ratio);
            let mscale = keys.number("mscale")?.unwrap_or(0.0);
            let mscale_all_dim = keys.number("mscale_all_dim")?.unwrap_or(0.0);
            let attention_factor = match keys.positive("attention_factor")? {
                Some(given) => given,
                None if mscale != 0.0 && mscale_all_dim != 0.0 => {
                    yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
                }
                None => yarn_mscale(factor, 1.0),
            };
            // 0 means "not given" to transformers.
            let beta = |keys: &mut Keys<'_>, key: &'static str, default: f64| match keys.number(key)? {
                Some(beta) if beta < 0.0 => Err(keys.bad(key, "must not be negative")),
                Some(beta) if beta > 0.0 => Ok(beta),
                _ => Ok(default),
            };
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast: beta(keys, "beta_fast", 32.0)?,
                beta_slow: beta(keys, "beta_slow", 1.0)?,
                attention_factor,
                truncate: keys.flag("truncate")?.unwrap_or(true),
            }
        }
        "longrope" | "su" => {
            let mut factors = |key: &'static str| match keys.numbers(key)? {
                Some(factors) => Ok(factors),
                None => Err(required_by(keys, key, rope_type)),
            };
            let (short, long) = (factors("short_factor")?, factors("long_factor")?);
            let ratio = max_position_embeddings as f64 / original_max_position_embeddings as f64;
            let factor = keys.positive("factor")?.unwrap_or(ratio);
            let original = original_max_position_embeddings as f64;
            let attention_factor = match keys.positive("attention_factor")? {
                Some(given) => given,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / original.ln()).sqrt(),
            };
            RopeScaling::LongRope { short, long, original_max_position_embeddings, attention_factor }
        }
        _ => {
            let key = if keys.has("rope_type") { "rope_type" } else { "type" };
            return Err(keys.bad(key, &format!("this rope type is not supported; supported: {TYPES}")));
        }
    })
}
