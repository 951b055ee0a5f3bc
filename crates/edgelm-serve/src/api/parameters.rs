//! How to generate: what every API asks for in its own words, and the words of OpenAI's endpoints.

use super::{
    fields::{Fields, Refused, is_empty, is_false, never, wrong_type},
    format::constraint,
};
use crate::{backend::Backend, error::ApiError, overflow::Overflow, service::MaxTokens, tools::Toolbox};
use edgelm_engine::{Constraint, GenerateOptions, Grammar, Sampling};
use edgelm_model::GenerationConfig;
use serde_json::Value;
use std::time::Duration;

/// How to generate, checked. `options` lacks what depends on the prompt or the choice: `max_tokens` and `seed`.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) options: GenerateOptions,
    pub(crate) max_tokens: MaxTokens,
    /// Choices.
    pub(crate) n: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) constraint: Option<Wanted>,
    /// Smaller goes first.
    pub(crate) priority: i64,
    /// From arrival to the last token.
    pub(crate) timeout: Option<Duration>,
    /// What is done with a prompt that is too long; `None` = what the server does.
    pub(crate) overflow: Option<Overflow>,
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

/// The answer is wanted as events, in OpenAI's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streaming {
    pub(crate) include_usage: bool,
}

const MAX_CHOICES: i64 = 8;
const MAX_STOPS: usize = 16;
const MIN_TIMEOUT_S: f64 = 0.001;
/// A day.
const MAX_TIMEOUT_S: f64 = 86_400.0;

impl Parameters {
    /// Greedy or by the model's defaults, without a limit: what APIs begin with.
    pub(crate) fn new(sampling: Sampling, max_tokens: MaxTokens) -> Self {
        let options = GenerateOptions { sampling, ..GenerateOptions::default() };
        Self { options, max_tokens, n: 1, seed: None, constraint: None, priority: 0, timeout: None, overflow: None }
    }

    /// Lets the model call functions: what the answer must be follows from them too. `param` is the field that holds them.
    pub(crate) fn use_tools(
        &mut self,
        backend: &dyn Backend,
        param: &str,
        toolbox: Option<&Toolbox>,
    ) -> Result<(), ApiError> {
        let Some(toolbox) = toolbox else { return Ok(()) };
        self.constraint = toolbox.constraint(backend, param, self.constraint.take())?;
        // Marks that are control tokens must not be left out of the text.
        self.options.keep_special |= toolbox.form.marks().any(|mark| backend.control_token(mark).is_some());
        if self.constraint.is_some() && self.options.ignore_eos {
            return Err(ApiError::invalid("ignore_eos", "an answer of a fixed form ends where its form does"));
        }
        Ok(())
    }

    /// The fields that OpenAI's generating endpoints share. `max_tokens` applies where neither the request nor the model
    /// says anything.
    pub(super) fn openai(
        fields: &mut Fields,
        defaults: &GenerationConfig,
        vocab_size: usize,
        max_tokens: MaxTokens,
    ) -> Result<Self, ApiError> {
        let mut parameters = Self::new(sampling(fields, defaults)?, max_tokens_of(fields, defaults, max_tokens)?);
        parameters.options.sampling.logit_bias = logit_bias(fields, vocab_size)?;
        parameters.options.stop = stop(fields, "stop")?;
        parameters.options.ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
        parameters.options.keep_special = !fields.boolean("skip_special_tokens")?.unwrap_or(true);
        parameters.n = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1).unsigned_abs();
        parameters.seed = seed(fields)?;
        parameters.priority = fields.integer("priority", i64::MIN..=i64::MAX)?.unwrap_or(0);
        parameters.timeout = fields.number("timeout", MIN_TIMEOUT_S..=MAX_TIMEOUT_S)?.map(Duration::from_secs_f32);
        parameters.overflow = overflow(fields)?;
        parameters.constraint = constraint(fields)?;
        if parameters.constraint.is_some() && parameters.options.ignore_eos {
            return Err(ApiError::invalid("ignore_eos", "an answer of a fixed form ends where its form does"));
        }
        labels(fields)?;
        Ok(parameters)
    }
}

/// `overflow`: what is done with a prompt that is too long.
pub(super) fn overflow(fields: &mut Fields) -> Result<Option<Overflow>, ApiError> {
    let Some(name) = fields.string("overflow")? else { return Ok(None) };
    match Overflow::parse(&name) {
        Some(overflow) => Ok(Some(overflow)),
        None => Err(ApiError::invalid("overflow", format!("`{name}` is not `refuse`, `slide` or `summarize`"))),
    }
}

/// Any integer is a seed; the sign is only a bit of it.
pub(super) fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    Ok(fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned))
}

/// Labels for the caller's own bookkeeping, and hints to caches that change no answer: there is nothing to honour.
pub(super) fn labels(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"] {
        fields.string(name)?;
    }
    fields.object("metadata")?;
    Ok(())
}

/// OpenAI's limits: -100 and 100 all but forbid or force a token.
fn logit_bias(fields: &mut Fields, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = fields.object("logit_bias")?.unwrap_or_default();
    let entry = |(token, bias): (String, Value)| {
        let param = fields.name("logit_bias");
        let id = token.parse::<u32>().ok().filter(|&id| usize::try_from(id).is_ok_and(|id| id < vocab_size));
        let id =
            id.ok_or_else(|| ApiError::invalid(&param, format!("`{token}` is not one of {vocab_size} token ids")))?;
        match bias.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
            _ => Err(ApiError::invalid(&param, format!("{bias} is not a number between -100 and 100"))),
        }
    };
    entries.into_iter().map(entry).collect()
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

/// What the model says about itself, over OpenAI's defaults.
pub(super) fn own_sampling(defaults: &GenerationConfig) -> Sampling {
    let off = Sampling::default();
    // A model that says `do_sample: false` is greedy, whatever else its file holds.
    if defaults.do_sample == Some(false) {
        return Sampling { temperature: 0.0, ..off };
    }
    Sampling {
        temperature: defaults.temperature.unwrap_or(1.0),
        top_k: defaults.top_k.unwrap_or(off.top_k),
        top_p: defaults.top_p.unwrap_or(off.top_p),
        min_p: defaults.min_p.unwrap_or(off.min_p),
        repeat_penalty: defaults.repetition_penalty.unwrap_or(off.repeat_penalty),
        ..off
    }
}

/// OpenAI's ranges; `top_k`, `min_p` and `repetition_penalty` are common extensions.
pub(super) fn sampling(fields: &mut Fields, defaults: &GenerationConfig) -> Result<Sampling, ApiError> {
    let (from_model, off) = (own_sampling(defaults), Sampling::default());
    let top_k = match fields.integer("top_k", -1..=i64::from(i32::MAX))? {
        // -1 = off, as other servers write it.
        Some(top_k) => usize::try_from(top_k).unwrap_or(0),
        None => from_model.top_k,
    };
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(from_model.top_p);
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(from_model.temperature),
        top_k,
        // 0 keeps the best token alone; an engine only needs it to be positive for that.
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(from_model.min_p),
        repeat_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(from_model.repeat_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(off.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(off.frequency_penalty),
        ..off
    })
}

/// A text or several, under `name`.
pub(super) fn stop(fields: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let param = fields.name(name);
    let texts = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(texts)) => texts,
        Some(text) => vec![text],
    };
    if texts.len() > MAX_STOPS {
        return Err(ApiError::invalid(&param, format!("{} texts, at most {MAX_STOPS} are allowed", texts.len())));
    }
    texts
        .into_iter()
        .map(|text| match text {
            Value::String(text) if text.is_empty() => Err(ApiError::invalid(&param, "a stop text is empty")),
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&param, "a string or an array of strings", &other)),
        })
        .collect()
}

pub(super) fn streaming(fields: &mut Fields) -> Result<Option<Streaming>, ApiError> {
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
            ("continuous_usage_stats", Value::Bool(false)) => {}
            ("continuous_usage_stats", _) => return Err(ApiError::UnsupportedParameter { param, why: None }),
            ("include_usage", other) => return Err(wrong_type(&param, "true or false", &other)),
            ("include_obfuscation", _) => return Err(ApiError::UnsupportedParameter { param, why: None }),
            _ => return Err(ApiError::UnknownParameter { param }),
        }
    }
    Ok(Some(Streaming { include_usage }))
}

/// Fields of OpenAI's generating endpoints that this server does not have.
pub(super) const REFUSED: &[Refused] = &[
    ("audio", never),
    ("min_tokens", |value| value == 0),
    ("modalities", |value| value.as_array().is_some_and(|all| all.iter().all(|one| one == "text"))),
    ("moderation", never),
    ("prediction", never),
    ("prompt_cache_options", never),
    ("reasoning_effort", |value| value == "none"),
    ("service_tier", |value| value == "auto" || value == "default"),
    ("store", is_false),
    ("stop_token_ids", is_empty),
    ("use_beam_search", is_false),
    ("verbosity", |value| value == "medium"),
    ("web_search_options", never),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: Value, defaults: &GenerationConfig) -> Result<Parameters, ApiError> {
        let mut fields = Fields::parse(body.to_string().as_bytes())?;
        let parameters = Parameters::openai(&mut fields, defaults, 100, MaxTokens::Rest)?;
        streaming(&mut fields)?;
        fields.finish_but(REFUSED)?;
        Ok(parameters)
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
        assert_eq!((parameters.n, parameters.seed, parameters.constraint.is_none()), (1, None, true));
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
            "response_format": null, "stream": null, "stream_options": null, "logit_bias": null});
        assert!(parse(body, &GenerationConfig::default()).is_ok());
    }

    #[test]
    fn values_that_ask_for_nothing_pass() {
        let body = json!({"store": false, "response_format": {"type": "text"}, "logit_bias": {},
            "user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"]});
        assert!(parse(body, &GenerationConfig::default()).is_ok());
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (name, value) in [
            ("store", json!(true)),
            ("reasoning_effort", json!("low")),
            ("audio", json!({"voice": "alloy"})),
            ("web_search_options", json!({})),
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
            ("logit_bias", json!([1])),
            ("logit_bias", json!({"100": 1})),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": 101})),
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
            ("priority", json!(0.5)),
            ("timeout", json!(0)),
            ("timeout", json!(100_000)),
        ] {
            assert_eq!(refusal(json!({name: value})), (name.to_owned(), "invalid_value".to_owned()), "{value}");
        }
        assert_eq!(refusal(json!({"max_tokens": 1, "max_completion_tokens": 2})).0, "max_tokens");
    }

    #[test]
    fn forms_of_an_answer() {
        let wanted = |body: Value| parse(body, &GenerationConfig::default()).map(|parsed| parsed.constraint);
        let constraint = |body| wanted(body).expect("valid").expect("a constraint");
        let format = |kind: Value| json!({"response_format": kind});
        assert_eq!(constraint(format(json!({"type": "json_object"}))).constraint, Constraint::JsonObject);
        let schema =
            json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "null"}}});
        let schema = constraint(format(schema));
        assert_eq!(schema.constraint, Constraint::JsonSchema(json!({"type": "null"})));
        assert_eq!(schema.param, "response_format.json_schema.schema");
        let choice = constraint(json!({"guided_choice": ["a", "b"]}));
        assert_eq!(choice.constraint, Constraint::Choice(vec!["a".into(), "b".into()]));
        let regex = constraint(json!({"structured_outputs": {"regex": "a+"}}));
        assert_eq!(
            (regex.constraint, regex.param.as_str()),
            (Constraint::Regex("a+".into()), "structured_outputs.regex")
        );
        let text = constraint(json!({"guided_json": "{\"type\": \"null\"}"}));
        assert_eq!(text.constraint, Constraint::JsonSchema(json!({"type": "null"})));
        assert!(wanted(format(json!({"type": "text"}))).expect("valid").is_none());
        for (body, param) in [
            (format(json!({"type": "xml"})), "response_format.type"),
            (format(json!({"type": "text", "json_schema": {}})), "response_format.json_schema"),
            (format(json!({"type": "json_schema"})), "response_format.json_schema"),
            (
                format(json!({"type": "json_schema", "json_schema": {"name": "n"}})),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
            (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
            (json!({"structured_outputs": {"regex": "a", "backend": "x"}}), "structured_outputs.backend"),
        ] {
            assert_eq!(wanted(body).expect_err("refused").body()["error"]["param"], param);
        }
    }

    #[test]
    fn stop_and_seed_forms() {
        let one = parse(json!({"stop": "END", "seed": -1}), &GenerationConfig::default()).expect("valid");
        assert_eq!((one.options.stop, one.seed), (vec!["END".to_owned()], Some(u64::MAX)));
        let two = parse(json!({"stop": ["a", "b"]}), &GenerationConfig::default()).expect("valid");
        assert_eq!(two.options.stop, ["a", "b"]);
    }
}
