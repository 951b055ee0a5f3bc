//! Rotary parameters of config.json: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters` (5).

use super::{RopeConfig, RopePairs, RopeScaling, json::Keys, limits::MAX_CONTEXT, rope::yarn_mscale};
use crate::{Arch, ModelError};
use serde_json::{Map, Value};
use std::path::Path;

const TYPES: &str = "default, linear, dynamic, llama3, yarn";

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
];

/// Reads the rotary keys of `keys`. As in transformers, `rope_scaling` wins over `rope_parameters`, and a theta inside
/// over one outside.
pub(super) fn read(
    keys: &mut Keys<'_>,
    path: &Path,
    arch: &Arch,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeConfig, ModelError> {
    let outer_theta = keys.positive("rope_theta")?;
    let outer_original = keys.size("original_max_position_embeddings", MAX_CONTEXT)?;
    if keys.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(keys.bad("partial_rotary_factor", "only 1 is supported for this architecture"));
    }
    let (scaling, parameters) = (keys.get("rope_scaling"), keys.get("rope_parameters"));
    let (name, value) = match (scaling, parameters) {
        (Some(value), _) => ("rope_scaling", value),
        (None, Some(value)) => ("rope_parameters", value),
        (None, None) => ("rope_parameters", &Value::Null),
    };
    let empty = Map::new();
    let map = match value {
        Value::Object(map) => map,
        Value::Null => &empty,
        _ => return Err(keys.bad(name, "must be an object")),
    };
    let within = format!("{name}.");
    let mut inner = Keys::new(path, &within, map);
    if inner.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(inner.bad("partial_rotary_factor", "only 1 is supported for this architecture"));
    }
    let theta = inner.positive("rope_theta")?.or(outer_theta).unwrap_or(arch.defaults.rope_theta);
    let old_name = inner.text("type")?;
    let rope_type = inner.text("rope_type")?.or(old_name).unwrap_or("default");
    let original = match outer_original {
        Some(original) => original,
        None => inner.size("original_max_position_embeddings", MAX_CONTEXT)?.unwrap_or(max_position_embeddings),
    };
    let scaling = read_scaling(&mut inner, rope_type, max_position_embeddings, original)?;
    inner.finish(PARAMETERS)?;
    Ok(RopeConfig { theta, rotary_dim: head_dim, pairs: RopePairs::Halves, scaling })
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
    let required = |keys: &mut Keys<'_>, key: &'static str| {
        keys.positive(key)?.ok_or_else(|| keys.bad(key, &format!("rope type `{rope_type}` needs it")))
    };
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
        _ => {
            let key = if keys.has("rope_type") { "rope_type" } else { "type" };
            return Err(keys.bad(key, &format!("this rope type is not supported; supported: {TYPES}")));
        }
    })
}
