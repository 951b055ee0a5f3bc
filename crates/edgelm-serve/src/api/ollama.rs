//! Ollama's API: `/api/chat`, `/api/generate`, embeddings and the listings, for the one model that is served.
//!
//! Answers stream as JSON lines unless a client asks otherwise. The model stays loaded: `keep_alive` is taken, whatever
//! it says, and changes nothing.

use super::{
    App,
    conversation::{Conversation, past_call},
    embeddings::{Embed, texts},
    fields::{Fields, Refused, is_empty, is_false, is_one, is_zero, never, wrong_type},
    functions::{ToolChoice, build, function_name, schema},
    openai::tokens_json,
    parameters::{Parameters, Wanted, own_sampling, seed, stop},
};
use crate::{
    answer::{Answers, Item, Reading, Reason, Usage},
    backend::{Backend, Description},
    caller::Caller,
    error::ApiError,
    service::{MaxTokens, Service, Target, unix_now},
    stream::{Frame, Writer, lines},
    tools::{Call, Tool, Toolbox},
    worker::TokenLogprob,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use edgelm_engine::{Constraint, Pooling, Sampling};
use edgelm_model::Message;
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What Ollama takes where neither the request nor the model says anything.
const REPEAT_LAST_N: usize = 64;

/// Options about how a model is loaded, which is settled here, and samplers that are not there.
const REFUSED_OPTIONS: &[Refused] = &[
    ("num_keep", is_zero),
    ("num_batch", never),
    ("num_gpu", is_zero),
    ("main_gpu", is_zero),
    ("num_thread", is_zero),
    ("low_vram", is_false),
    ("numa", is_false),
    ("f16_kv", |value| value == true),
    ("logits_all", is_false),
    ("embedding_only", is_false),
    ("use_mmap", |value| value == true),
    ("use_mlock", is_false),
    ("vocab_only", is_false),
    ("typical_p", is_one),
    ("tfs_z", is_one),
    ("mirostat", is_zero),
    ("mirostat_tau", never),
    ("mirostat_eta", never),
    ("penalize_newline", is_false),
];

/// A request, checked.
pub(crate) struct Request {
    model: String,
    prompt: Source,
    parameters: Parameters,
    is_streaming: bool,
    /// Nothing is asked: clients load models so.
    is_empty: bool,
}

/// What to answer.
enum Source {
    Chat(Conversation),
    Raw(String),
}

impl Request {
    /// `/api/chat`.
    pub(crate) fn chat(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let mut messages = Vec::new();
        for (param, value) in fields.items("messages")?.unwrap_or_default() {
            let message = message(Fields::of(param, value)?, &messages)?;
            messages.push(message);
        }
        let toolbox = toolbox(fields, backend)?;
        let (mut parameters, is_streaming) = shared(fields, backend)?;
        parameters.use_tools(backend, "tools", toolbox.as_ref())?;
        fields.finish()?;
        let is_empty = messages.is_empty();
        let prompt = Source::Chat(Conversation { messages, toolbox, ..Conversation::default() });
        Ok(Self { model, prompt, parameters, is_streaming, is_empty })
    }

    /// `/api/generate`.
    pub(crate) fn generate(fields: &mut Fields, backend: &dyn Backend) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let prompt = fields.string("prompt")?.unwrap_or_default();
        let system = fields.string("system")?.filter(|text| !text.is_empty());
        let is_raw = fields.boolean("raw")?.unwrap_or(false);
        if is_raw && system.is_some() {
            return Err(ApiError::invalid("system", "a `raw` prompt is taken as it is"));
        }
        let (parameters, is_streaming) = shared(fields, backend)?;
        fields.finish_but(&[
            ("context", is_empty),
            ("height", never),
            ("images", is_empty),
            ("steps", never),
            ("suffix", is_empty),
            ("template", is_empty),
            ("width", never),
        ])?;
        let is_empty = prompt.is_empty();
        // A model without a chat template continues what it is given.
        let prompt = if is_raw || (backend.description().chat_template.is_none() && system.is_none()) {
            Source::Raw(prompt)
        } else {
            let system = system.map(|text| json!({"role": "system", "content": text}));
            let messages = system.into_iter().chain([json!({"role": "user", "content": prompt})]).collect();
            Source::Chat(Conversation { messages, ..Conversation::default() })
        };
        Ok(Self { model, prompt, parameters, is_streaming, is_empty })
    }
}

/// What chat and generate have in common; also whether to stream.
fn shared(fields: &mut Fields, backend: &dyn Backend) -> Result<(Parameters, bool), ApiError> {
    let mut parameters = match fields.inner("options")? {
        Some(mut options) => {
            let parameters = read_options(&mut options, backend)?;
            options.finish_but(REFUSED_OPTIONS)?;
            parameters
        }
        None => read_options(&mut Fields::default(), backend)?,
    };
    parameters.constraint = format(fields)?;
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0);
    if top > 0 && !wanted {
        return Err(ApiError::invalid("top_logprobs", "only allowed with `logprobs`: true"));
    }
    parameters.options.logprobs = wanted.then_some(usize::try_from(top).unwrap_or(0));
    keep_alive(fields)?;
    fields.refuse(&[("think", is_false), ("truncate", is_false), ("shift", is_false)])?;
    Ok((parameters, fields.boolean("stream")?.unwrap_or(true)))
}

/// A number of seconds or a text such as `5m`. The model stays loaded either way.
fn keep_alive(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("keep_alive") {
        None | Some(Value::Number(_) | Value::String(_)) => Ok(()),
        Some(other) => Err(wrong_type("keep_alive", "a number or a string", &other)),
    }
}

/// `options`: sampling and limits.
pub(crate) fn read_options(options: &mut Fields, backend: &dyn Backend) -> Result<Parameters, ApiError> {
    let own = own_sampling(backend.defaults());
    let sampling = Sampling {
        temperature: options.number("temperature", 0.0..=100.0)?.unwrap_or(own.temperature),
        top_k: options.count("top_k", 0)?.unwrap_or(own.top_k),
        top_p: options.number("top_p", 0.0..=1.0)?.unwrap_or(own.top_p).max(f32::MIN_POSITIVE),
        min_p: options.number("min_p", 0.0..=1.0)?.unwrap_or(own.min_p),
        repeat_penalty: options.number("repeat_penalty", 0.01..=100.0)?.unwrap_or(own.repeat_penalty),
        repeat_last_n: match options.integer("repeat_last_n", -1..=i64::from(i32::MAX))? {
            None => REPEAT_LAST_N,
            // The whole context.
            Some(-1) => 0,
            Some(0) => {
                return Err(ApiError::invalid("options.repeat_last_n", "use `repeat_penalty`: 1 to switch it off"));
            }
            Some(count) => usize::try_from(count).unwrap_or(REPEAT_LAST_N),
        },
        presence_penalty: options.number("presence_penalty", -100.0..=100.0)?.unwrap_or(0.0),
        frequency_penalty: options.number("frequency_penalty", -100.0..=100.0)?.unwrap_or(0.0),
        ..Sampling::default()
    };
    let max_tokens = match options.integer("num_predict", -2..=i64::from(i32::MAX))? {
        None => backend.defaults().max_new_tokens.map_or(MaxTokens::Rest, MaxTokens::Default),
        // Without end, and to the end of the context: the context is the end.
        Some(-2 | -1) => MaxTokens::Rest,
        Some(0) => return Err(ApiError::invalid("options.num_predict", "at least one token must be asked for")),
        // Ollama cuts at the end of the context without a word; here the count is a default for what fits.
        Some(count) => MaxTokens::Default(usize::try_from(count).unwrap_or(usize::MAX)),
    };
    if let Some(wanted) = options.count("num_ctx", 1)?
        && wanted > backend.context()
    {
        let what = format!("{wanted} is more than the {} tokens of this server", backend.context());
        return Err(ApiError::invalid("options.num_ctx", what));
    }
    let mut parameters = Parameters::new(sampling, max_tokens);
    parameters.options.stop = stop(options, "stop")?;
    parameters.seed = seed(options)?;
    Ok(parameters)
}

/// `format`: `"json"`, or a schema.
fn format(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let constraint = match fields.take("format") {
        None => return Ok(None),
        Some(Value::String(word)) if word.is_empty() => return Ok(None),
        Some(Value::String(word)) if word == "json" => Constraint::JsonObject,
        Some(schema @ Value::Object(_)) => Constraint::JsonSchema(schema),
        Some(_) => return Err(ApiError::invalid("format", "must be `json` or a JSON schema")),
    };
    Ok(Some(Wanted { param: "format".to_owned(), constraint }))
}

fn message(mut fields: Fields, before: &[Message]) -> Result<Message, ApiError> {
    let role = fields.required_string("role")?;
    if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
        return Err(ApiError::invalid(fields.name("role"), "must be `system`, `user`, `assistant` or `tool`"));
    }
    let content = fields.string("content")?.unwrap_or_default();
    let mut message = json!({"role": role, "content": content});
    if let Some(thinking) = fields.string("thinking")? {
        message["reasoning_content"] = thinking.into();
    }
    let calls = fields.items("tool_calls")?.unwrap_or_default();
    if !calls.is_empty() {
        let mut past = Vec::new();
        for (index, (param, call)) in calls.into_iter().enumerate() {
            let mut call = Fields::of(param, call)?;
            super::conversation::call_kind(&mut call)?;
            // Ollama's calls have no ids; templates may want some.
            let id = call.string("id")?.unwrap_or_else(|| format!("call{:05}", before.len() * 100 + index));
            let missing = ApiError::MissingParameter { param: call.name("function") };
            let mut function = call.inner("function")?.ok_or(missing)?;
            let name = function.required_string("name")?;
            let arguments = function.object("arguments")?.unwrap_or_default();
            function.count("index", 0)?;
            function.finish()?;
            call.finish()?;
            past.push(past_call(&id, &name, arguments.into()));
        }
        message["tool_calls"] = past.into();
    }
    let name = fields.string("tool_name")?;
    let id = fields.string("tool_call_id")?;
    if role == "tool" {
        let calls = before.iter().rev().filter_map(|message| message["tool_calls"].as_array()).flatten();
        let call = calls.into_iter().find(|call| match &id {
            Some(id) => call["id"] == id.as_str(),
            None => name.as_deref().is_none_or(|name| call["function"]["name"] == name),
        });
        message["tool_call_id"] =
            id.map(Value::from).or_else(|| call.map(|call| call["id"].clone())).unwrap_or_default();
        if let Some(name) = name.map(Value::from).or_else(|| call.map(|call| call["function"]["name"].clone())) {
            message["name"] = name;
        }
    }
    fields.finish_but(&[("images", is_empty)])?;
    Ok(message)
}

fn toolbox(fields: &mut Fields, backend: &dyn Backend) -> Result<Option<Toolbox>, ApiError> {
    let values = fields.items("tools")?.unwrap_or_default();
    if values.is_empty() {
        return Ok(None);
    }
    let tool = |(param, value)| {
        let mut fields = Fields::of(param, value)?;
        super::conversation::call_kind(&mut fields)?;
        let missing = ApiError::MissingParameter { param: fields.name("function") };
        let mut function = fields.inner("function")?.ok_or(missing)?;
        let name = function_name(&mut function)?;
        let description = function.string("description")?;
        let parameters = schema(&mut function, "parameters")?;
        function.finish()?;
        fields.finish()?;
        Ok(Tool { name, description, parameters: without_nulls(parameters), strict: false })
    };
    let tools = values.into_iter().map(tool).collect::<Result<_, ApiError>>()?;
    build(backend, "tools", "tools", tools, ToolChoice::Auto, true)
}

/// ollama-python writes the parts of a schema that it has not set as null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(name, value)| (name, without_nulls(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// `POST /api/chat`.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = Request::chat(&mut fields, &*app.service()?.backend)?;
    answer(&app, caller, request, Shape::Chat).await
}

/// `POST /api/generate`.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = Request::generate(&mut fields, &*app.service()?.backend)?;
    answer(&app, caller, request, Shape::Generate).await
}

async fn answer(app: &App, caller: Caller, request: Request, shape: Shape) -> Result<Response, ApiError> {
    let received = caller.received;
    let service = app.service()?;
    let target = target(service, &request.model)?;
    let Request { model, prompt, parameters, is_streaming, is_empty } = request;
    if is_empty {
        let mut done = shape.line(&model, "", &[], &[]);
        done["done"] = true.into();
        done["done_reason"] = "load".into();
        return Ok(Json(done).into_response());
    }
    let toolbox = match &prompt {
        Source::Chat(conversation) => conversation.toolbox.clone(),
        Source::Raw(_) => None,
    };
    let param = if shape == Shape::Chat { "messages" } else { "prompt" };
    let tokens = move |backend: &dyn Backend| match prompt {
        Source::Chat(conversation) => conversation.prompt(backend),
        Source::Raw(text) => backend.text_prompt(&text),
    };
    let run = service.start(caller, target, &parameters, param, tokens).await?;
    let answers = Answers::new(run, Reading { toolbox, stops: Vec::new() });
    if is_streaming {
        return Ok(lines(answers, Stream { model, shape, received, reason: Reason::Stop }));
    }
    let (choices, usage) = answers.whole().await?;
    let mut done = json!({});
    for whole in choices {
        done = shape.line(&model, &whole.text, &whole.calls, &whole.logprobs);
        finish(&mut done, &whole.end.reason, received, &usage);
    }
    Ok(Json(done).into_response())
}

/// Ollama's names have tags; a name without one means `latest`.
fn target(service: &Service, model: &str) -> Result<Target, ApiError> {
    service.target(model).or_else(|error| match model.strip_suffix(":latest") {
        Some(name) => service.target(name),
        None => Err(error),
    })
}

/// The two forms of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Generate,
}

impl Shape {
    fn line(self, model: &str, text: &str, calls: &[Call], tokens: &[TokenLogprob]) -> Value {
        let mut line = json!({"model": model, "created_at": now()});
        match self {
            Self::Generate => line["response"] = text.into(),
            Self::Chat => {
                line["message"] = json!({"role": "assistant", "content": text});
                if !calls.is_empty() {
                    let call = |call: &Call| json!({"function": {"name": call.name, "arguments": call.arguments}});
                    line["message"]["tool_calls"] = calls.iter().map(call).collect();
                }
            }
        }
        if !tokens.is_empty() {
            line["logprobs"] = tokens_json(tokens).into();
        }
        line["done"] = false.into();
        line
    }
}

fn finish(line: &mut Value, reason: &Reason, received: Instant, usage: &Usage) {
    let now = Instant::now();
    let first = usage.first_token.unwrap_or(now);
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    line["done"] = true.into();
    line["done_reason"] = if *reason == Reason::Length { "length" } else { "stop" }.into();
    line["total_duration"] = nanos(now - received).into();
    // The model was there already.
    line["load_duration"] = 0.into();
    line["prompt_eval_count"] = usage.prompt_tokens.into();
    line["prompt_eval_duration"] = nanos(first.saturating_duration_since(usage.begin)).into();
    line["eval_count"] = usage.completion_tokens.into();
    line["eval_duration"] = nanos(now - first).into();
}

struct Stream {
    model: String,
    shape: Shape,
    received: Instant,
    reason: Reason,
}

impl Writer for Stream {
    fn item(&mut self, _: usize, item: Item, _: &Usage) -> Vec<Frame> {
        let line = match item {
            Item::Text(text, tokens) => self.shape.line(&self.model, &text, &[], &tokens),
            Item::Call(call) => self.shape.line(&self.model, "", &[call], &[]),
            Item::End(end) => {
                self.reason = end.reason;
                return Vec::new();
            }
        };
        vec![Frame::data(&line)]
    }

    fn close(&mut self, usage: &Usage) -> Vec<Frame> {
        let mut line = self.shape.line(&self.model, "", &[], &[]);
        finish(&mut line, &self.reason, self.received, usage);
        vec![Frame::data(&line)]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&error.ollama_body())]
    }
}

/// A request for embeddings, checked. `is_old` is `/api/embeddings`, which takes one text.
pub(crate) fn embed_request(fields: &mut Fields, is_old: bool) -> Result<(String, Embed), ApiError> {
    let model = fields.required_string("model")?;
    let param = if is_old { "prompt" } else { "input" };
    let inputs = texts(param, fields.required(param)?)?;
    if is_old && inputs.len() != 1 {
        return Err(ApiError::invalid(param, "must be one string"));
    }
    let (mut dimensions, mut truncate) = (None, false);
    if !is_old {
        dimensions = fields.count("dimensions", 1)?;
        truncate = fields.boolean("truncate")?.unwrap_or(false);
    }
    keep_alive(fields)?;
    if let Some(mut options) = fields.inner("options")? {
        // Nothing is sampled.
        options.finish_but(REFUSED_OPTIONS)?;
    }
    fields.finish()?;
    Ok((model, Embed { param, inputs, pooling: Pooling::Last, dimensions, truncate }))
}

/// `POST /api/embed`.
pub(super) async fn embed(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let begin = Instant::now();
    let service = app.service()?;
    let (model, embed) = embed_request(&mut fields, false)?;
    let target = target(service, &model)?;
    let (vectors, tokens) = embed.run(service, &caller, target).await?;
    let nanos = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(Json(json!({
        "model": model,
        "embeddings": vectors,
        "total_duration": nanos,
        "load_duration": 0,
        "prompt_eval_count": tokens,
    })))
}

/// `POST /api/embeddings`, the older form.
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let (model, embed) = embed_request(&mut fields, true)?;
    let target = target(service, &model)?;
    let (vectors, _) = embed.run(service, &caller, target).await?;
    Ok(Json(json!({"embedding": vectors.into_iter().next()})))
}

/// `GET /api/version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /api/tags`: the model and its adapters.
pub(super) async fn tags(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let adapters = service.backend.adapters().iter().map(|(id, _)| id.as_str());
    let models: Vec<Value> =
        [service.backend.name()].into_iter().chain(adapters).map(|id| listing(service, id)).collect();
    Ok(Json(json!({"models": models})))
}

/// `GET /api/ps`: the models that are loaded.
pub(super) async fn ps(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let mut listing = listing(service, service.backend.name());
    listing["size_vram"] = 0.into();
    listing["context_length"] = service.backend.context().into();
    // It stays: a hundred years are for ever to a client.
    listing["expires_at"] = rfc3339(unix_now() + 100 * 365 * 86_400, 0).into();
    Ok(Json(json!({"models": [listing]})))
}

/// `POST /api/show`.
pub(super) async fn show(State(app): State<Arc<App>>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let service = app.service()?;
    let model = show_request(&mut fields)?;
    let _ = target(service, &model)?;
    let about = service.backend.description();
    let mut capabilities = vec!["completion", "embedding"];
    if about.chat_template.as_deref().is_some_and(|template| crate::tools::Form::of_template(template).is_some()) {
        capabilities.push("tools");
    }
    let architecture = about.architecture.as_str();
    let mut info = json!({
        "general.architecture": architecture,
        "general.parameter_count": about.parameters,
    });
    info[format!("{architecture}.context_length")] = service.backend.context().into();
    info[format!("{architecture}.embedding_length")] = about.hidden_size.into();
    Ok(Json(json!({
        "modified_at": rfc3339(service.created, 0),
        "details": details(about),
        "template": about.chat_template.clone().unwrap_or_default(),
        "model_info": info,
        "capabilities": capabilities,
    })))
}

pub(crate) fn show_request(fields: &mut Fields) -> Result<String, ApiError> {
    let (model, name) = (fields.string("model")?, fields.string("name")?);
    fields.boolean("verbose")?;
    fields.finish()?;
    // `name` is the older word.
    model.or(name).ok_or_else(|| ApiError::MissingParameter { param: "model".to_owned() })
}

fn listing(service: &Service, id: &str) -> Value {
    let about = service.backend.description();
    json!({
        "name": id,
        "model": id,
        "modified_at": rfc3339(service.created, 0),
        "size": about.size_bytes,
        "details": details(about),
    })
}

fn details(about: &Description) -> Value {
    json!({
        "parent_model": "",
        "format": "edgelm",
        "family": about.architecture,
        "families": [about.architecture],
        "parameter_size": parameter_size(about.parameters),
        "quantization_level": about.format,
    })
}

/// `5.1M`, `1.2B`.
fn parameter_size(count: u64) -> String {
    let (unit, name) = if count >= 1_000_000_000 { (1e9, "B") } else { (1e6, "M") };
    format!("{:.1}{name}", count as f64 / unit)
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_nanos())
}

/// A time in UTC as RFC 3339 writes it. Days become a date by the algorithm of Hinnant's `civil_from_days`.
fn rfc3339(seconds: u64, nanos: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(rfc3339(1_735_689_599, 0), "2024-12-31T23:59:59.000000000Z");
    }

    #[test]
    fn sizes() {
        assert_eq!((parameter_size(5_060_000), parameter_size(1_240_000_000)), ("5.1M".into(), "1.2B".into()));
    }
}
