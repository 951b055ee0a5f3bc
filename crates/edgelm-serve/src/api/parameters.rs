//! The fields that both generating endpoints share: sampling, limits, stop texts, streaming; and the fields that are
//! known but refused.

use super::fields::{Fields, wrong_type};
use crate::{backend::Backend, error::ApiError, service::MaxTokens};
use edgelm_engine::{Constraint, GenerateOptions, Grammar, Sampling};
use edgelm_model::GenerationConfig;
use serde_json::Value;

/// How to generate, checked. `options` lacks what depends on the prompt or the choice: `max_tokens` and `seed`.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) options: GenerateOptions,
    pub(crate) max_tokens: MaxTokens,
    /// Choices.
    pub(crate) n: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) streaming: Option<Streaming>,
    pub(crate) constraint: Option<Wanted>,
}

/// A constraint on the answer, and the request field that asks for it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) param: String,
    pub(crate) constraint: Constraint,
}

impl Wanted {
    /// Compiles it for the model; what cannot be enforced is a fault of the field.
    pub(crate) fn compile(&self, backend: &dyn Backend) -> Result<Grammar, ApiError> {
        backend.grammar(&self.constraint).map_err(|error| ApiError::from_constraint(&error, &self.param))
    }
}

/// The answer is wanted as events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streaming {
    pub(crate) include_usage: bool,
}

const MAX_CHOICES: i64 = 8;
const MAX_STOPS: usize = 16;

impl Parameters {
    /// `max_tokens` applies where neither the request nor the model says anything. Refuses what is left of `fields`,
    /// so everything particular to an endpoint must have been taken before.
    pub(super) fn parse(
        mut fields: Fields,
        defaults: &GenerationConfig,
        max_tokens: MaxTokens,
        logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        let max_tokens = max_tokens_of(&mut fields, defaults, max_tokens)?;
        let sampling = sampling(&mut fields, defaults)?;
        let stop = stop(&mut fields)?;
        let n = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1).unsigned_abs();
        // Any integer is a seed; the sign is only a bit of it.
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned);
        let streaming = streaming(&mut fields)?;
        // Labels for the caller's own bookkeeping: there is nothing to honour.
        fields.string("user")?;
        fields.string("safety_identifier")?;
        fields.string("prompt_cache_key")?;
        fields.object("metadata")?;
        refuse_rest(fields)?;
        let options = GenerateOptions { sampling, stop, logprobs, ..GenerateOptions::default() };
        Ok(Self { options, max_tokens, n, seed, streaming, constraint: None })
    }
}

fn max_tokens_of(
    fields: &mut Fields,
    defaults: &GenerationConfig,
    otherwise: MaxTokens,
) -> Result<MaxTokens, ApiError> {
    let old = fields.count("max_tokens", 1)?;
    let new = fields.count("max_completion_tokens", 1)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            Err(ApiError::invalid("max_tokens", format!("{old} contradicts `max_completion_tokens`: {new}")))
        }
        (Some(max), _) | (None, Some(max)) => Ok(MaxTokens::Asked(max)),
        (None, None) => Ok(defaults.max_new_tokens.map_or(otherwise, MaxTokens::Default)),
    }
}

/// OpenAI's ranges; `top_k`, `min_p` and `repetition_penalty` are common extensions.
fn sampling(fields: &mut Fields, defaults: &GenerationConfig) -> Result<Sampling, ApiError> {
    // A model that says `do_sample: false` is greedy, whatever else its file holds.
    let greedy = defaults.do_sample == Some(false);
    let from_model = if greedy { &GenerationConfig::default() } else { defaults };
    let default_temperature = if greedy { 0.0 } else { from_model.temperature.unwrap_or(1.0) };
    let off = Sampling::default();
    let top_k = match fields.integer("top_k", -1..=i64::from(i32::MAX))? {
        // -1 = off, as other servers write it.
        Some(top_k) => usize::try_from(top_k).unwrap_or(0),
        None => from_model.top_k.unwrap_or(off.top_k),
    };
    let top_p = fields.number("top_p", 0.0..=1.0)?.or(from_model.top_p).unwrap_or(off.top_p);
    let repetition_penalty = fields.number("repetition_penalty", 0.01..=100.0)?.or(from_model.repetition_penalty);
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(default_temperature),
        top_k,
        // 0 keeps the best token alone; an engine only needs it to be positive for that.
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0..=1.0)?.or(from_model.min_p).unwrap_or(off.min_p),
        repeat_penalty: repetition_penalty.unwrap_or(off.repeat_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(off.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(off.frequency_penalty),
        ..off
    })
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(texts)) => texts,
        Some(text) => vec![text],
    };
    if texts.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("{} texts, at most {MAX_STOPS} are allowed", texts.len())));
    }
    texts
        .into_iter()
        .map(|text| match text {
            Value::String(text) if text.is_empty() => Err(ApiError::invalid("stop", "a stop text is empty")),
            Value::String(text) => Ok(text),
            other => Err(wrong_type("stop", "a string or an array of strings", &other)),
        })
        .collect()
}

fn streaming(fields: &mut Fields) -> Result<Option<Streaming>, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    if !stream {
        return match options {
            None => Ok(None),
            Some(_) => Err(ApiError::invalid("stream_options", "only allowed with `stream`: true")),
        };
    }
    let mut include_usage = false;
    for (name, value) in options.unwrap_or_default() {
        let param = format!("stream_options.{name}");
        match (name.as_str(), value) {
            (_, Value::Null) | ("include_obfuscation", Value::Bool(false)) => {}
            ("include_usage", Value::Bool(wanted)) => include_usage = wanted,
            ("include_usage", other) => return Err(wrong_type(&param, "true or false", &other)),
            ("include_obfuscation", _) => return Err(ApiError::UnsupportedParameter { param, why: None }),
            _ => return Err(ApiError::UnknownParameter { param }),
        }
    }
    Ok(Some(Streaming { include_usage }))
}

type AsksNothing = fn(&Value) -> bool;

/// Fields of the OpenAI API that this server does not have, each with the test for values that ask for nothing and may
/// therefore pass.
const REFUSED: &[(&str, AsksNothing)] = &[
    ("audio", never),
    ("best_of", |value| value == 1),
    ("echo", is_false),
    ("function_call", |value| value == "none"),
    ("functions", is_empty),
    ("logit_bias", is_empty),
    ("logprobs", is_false),
    ("modalities", |value| value.as_array().is_some_and(|all| all.iter().all(|one| one == "text"))),
    ("moderation", never),
    ("parallel_tool_calls", never),
    ("prediction", never),
    ("prompt_cache_options", never),
    ("prompt_cache_retention", never),
    ("reasoning_effort", |value| value == "none"),
    ("response_format", |value| value.as_object().is_some_and(|f| f.len() == 1) && value["type"] == "text"),
    ("service_tier", |value| value == "auto" || value == "default"),
    ("store", is_false),
    ("suffix", |value| value == ""),
    ("tool_choice", |value| value == "none"),
    ("tools", is_empty),
    ("top_logprobs", never),
    ("verbosity", never),
    ("web_search_options", never),
];

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == false
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn refuse_rest(fields: Fields) -> Result<(), ApiError> {
    for (name, value) in fields.rest() {
        match REFUSED.iter().find(|(known, _)| *known == name) {
            Some((_, asks_nothing)) if asks_nothing(&value) => {}
            Some(_) => return Err(ApiError::UnsupportedParameter { param: name, why: None }),
            None => return Err(ApiError::UnknownParameter { param: name }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: Value, defaults: &GenerationConfig) -> Result<Parameters, ApiError> {
        Parameters::parse(Fields::parse(body.to_string().as_bytes())?, defaults, MaxTokens::Rest, None)
    }

    /// `param` and `code` of the refusal.
    fn refusal(body: Value) -> (String, String) {
        let error = parse(body, &GenerationConfig::default()).expect_err("refused").body();
        let text = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        (text("param"), text("code"))
    }

    #[test]
    fn openai_defaults() {
        let parameters = parse(json!({}), &GenerationConfig::default()).expect("nothing asked for");
        let sampling = &parameters.options.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (1.0, 1.0, 0));
        assert_eq!((parameters.n, parameters.seed, parameters.streaming), (1, None, None));
        assert_eq!(parameters.max_tokens, MaxTokens::Rest);
    }

    #[test]
    fn the_models_defaults_stand_behind_the_requests() {
        let mut defaults = GenerationConfig {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            max_new_tokens: Some(9),
            ..GenerationConfig::default()
        };
        let parameters = parse(json!({"top_k": 5}), &defaults).expect("valid");
        let sampling = &parameters.options.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.6, 0.95, 5));
        assert_eq!(parameters.max_tokens, MaxTokens::Default(9));
        defaults.do_sample = Some(false);
        let greedy = parse(json!({}), &defaults).expect("valid").options.sampling;
        assert_eq!((greedy.temperature, greedy.top_k), (0.0, 0));
    }

    #[test]
    fn null_is_absent() {
        let body = json!({"temperature": null, "stop": null, "n": null, "tools": null, "no_such_field": null,
            "stream": null, "stream_options": null, "logit_bias": null});
        assert!(parse(body, &GenerationConfig::default()).is_ok());
    }

    #[test]
    fn values_that_ask_for_nothing_pass() {
        let body = json!({"store": false, "response_format": {"type": "text"}, "tools": [], "logit_bias": {},
            "user": "me", "metadata": {"a": "b"}, "best_of": 1, "echo": false, "tool_choice": "none"});
        assert!(parse(body, &GenerationConfig::default()).is_ok());
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (name, value) in [
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("response_format", json!({"type": "text", "json_schema": {}})),
            ("logit_bias", json!({"5": 1})),
            ("store", json!(true)),
            ("echo", json!(true)),
            ("reasoning_effort", json!("low")),
        ] {
            assert_eq!(refusal(json!({name: value})), (name.to_owned(), "unsupported_parameter".to_owned()));
        }
        assert_eq!(refusal(json!({"temprature": 1})), ("temprature".into(), "unknown_parameter".into()));
        assert_eq!(
            refusal(json!({"stream": true, "stream_options": {"x": 1}})),
            ("stream_options.x".into(), "unknown_parameter".into())
        );
    }

    #[test]
    fn ranges_and_types() {
        for (name, value) in [
            ("temperature", json!(2.01)),
            ("temperature", json!(-0.1)),
            ("temperature", json!("1")),
            ("top_p", json!(1.1)),
            ("top_k", json!(-2)),
            ("min_p", json!(-1)),
            ("presence_penalty", json!(-2.5)),
            ("frequency_penalty", json!(2.5)),
            ("repetition_penalty", json!(0)),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(1.5)),
            ("max_completion_tokens", json!(-1)),
            ("n", json!(0)),
            ("n", json!(9)),
            ("seed", json!("x")),
            ("stop", json!("")),
            ("stop", json!([1])),
            ("stop", json!(vec!["x"; 17])),
            ("stream", json!("yes")),
            ("stream_options", json!({"include_usage": true})),
            ("user", json!(1)),
            ("metadata", json!("x")),
        ] {
            assert_eq!(refusal(json!({name: value})), (name.to_owned(), "invalid_value".to_owned()), "{value}");
        }
        assert_eq!(refusal(json!({"max_tokens": 1, "max_completion_tokens": 2})).0, "max_tokens");
    }

    #[test]
    fn stop_and_seed_forms() {
        let one = parse(json!({"stop": "END", "seed": -1}), &GenerationConfig::default()).expect("valid");
        assert_eq!((one.options.stop, one.seed), (vec!["END".to_owned()], Some(u64::MAX)));
        let two = parse(json!({"stop": ["a", "b"]}), &GenerationConfig::default()).expect("valid");
        assert_eq!(two.options.stop, ["a", "b"]);
    }
}
