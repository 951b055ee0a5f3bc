//! Ollama's API: `/api/chat`, `/api/generate`, embeddings and the listings, for the models that are served.
//!
//! Answers stream as JSON lines unless a client asks otherwise.

use super::{
    App,
    completions::Prompt,
    conversation::{Conversation, past_call},
    embeddings::{Embed, texts},
    fields::{Fields, Refused, is_empty, is_false, is_one, is_zero, never, wrong_type},
    functions::{ToolChoice, build, function_name, schema},
    openai::tokens_json,
    parameters::{Parameters, Wanted, overflow, own_sampling, seed, stop},
};
use crate::{
    answer::{Answers, Item, Reading, Reason, Usage},
    backend::{Backend, Description},
    caller::Caller,
    error::ApiError,
    models::{KeepAlive, Lease, Status},
    overflow::Source as PromptSource,
    service::{MaxTokens, unix_now},
    stream::{Frame, Writer, lines},
    time::{Fraction, rfc3339},
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
    /// Nothing is asked: clients load and unload models so.
    is_empty: bool,
    keep_alive: Option<KeepAlive>,
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
        let keep_alive = keep_alive(fields)?;
        parameters.use_tools(backend, "tools", toolbox.as_ref())?;
        fields.finish()?;
        let is_empty = messages.is_empty();
        let prompt = Source::Chat(Conversation { messages, toolbox, ..Conversation::default() });
        Ok(Self { model, prompt, parameters, is_streaming, is_empty, keep_alive })
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
        let keep_alive = keep_alive(fields)?;
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
        Ok(Self { model, prompt, parameters, is_streaming, is_empty, keep_alive })
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
    parameters.overflow = overflow(fields)?;
    fields.refuse(&[("think", is_false), ("truncate", is_false), ("shift", is_false)])?;
    Ok((parameters, fields.boolean("stream")?.unwrap_or(true)))
}

/// A number of seconds or a text such as `5m`; below zero means for ever.
fn keep_alive(fields: &mut Fields) -> Result<Option<KeepAlive>, ApiError> {
    let keep_alive = match fields.take("keep_alive") {
        None => return Ok(None),
        Some(Value::Number(seconds)) => seconds.as_f64().and_then(KeepAlive::from_seconds),
        Some(Value::String(text)) => KeepAlive::parse(&text),
        Some(other) => return Err(wrong_type("keep_alive", "a number or a string", &other)),
    };
    match keep_alive {
        Some(keep_alive) => Ok(Some(keep_alive)),
        None => Err(ApiError::invalid("keep_alive", "must be seconds, or a duration such as `5m` or `1h30m`")),
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
    let lease = lease(&app, &fields, &caller).await?;
    let request = Request::chat(&mut fields, &*lease.backend())?;
    answer(lease, caller, request, Shape::Chat).await
}

/// `POST /api/generate`.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let lease = lease(&app, &fields, &caller).await?;
    let request = Request::generate(&mut fields, &*lease.backend())?;
    answer(lease, caller, request, Shape::Generate).await
}

async fn answer(lease: Lease, caller: Caller, request: Request, shape: Shape) -> Result<Response, ApiError> {
    let received = caller.received;
    let load_time = lease.load_time;
    let Request { model, prompt, parameters, is_streaming, is_empty, keep_alive } = request;
    let model = lease.answers_for(model);
    if let Some(keep_alive) = keep_alive {
        lease.keep_alive(keep_alive);
    }
    if is_empty {
        let mut done = shape.line(&model, "", &[], &[]);
        done["done"] = true.into();
        let is_end = keep_alive == Some(KeepAlive::For(Duration::ZERO));
        done["done_reason"] = if is_end { "unload" } else { "load" }.into();
        return Ok(Json(done).into_response());
    }
    let toolbox = match &prompt {
        Source::Chat(conversation) => conversation.toolbox.clone(),
        Source::Raw(_) => None,
    };
    let param = if shape == Shape::Chat { "messages" } else { "prompt" };
    let tokens = match prompt {
        Source::Chat(conversation) => PromptSource::chat(conversation),
        Source::Raw(text) => PromptSource::Plain(Prompt::Text(text)),
    };
    let run = lease.start(caller, &parameters, param, tokens).await?;
    let answers = Answers::new(run, Reading { toolbox, stops: Vec::new() });
    if is_streaming {
        return Ok(lines(answers, Stream { model, shape, received, load_time, reason: Reason::Stop }));
    }
    let (choices, usage) = answers.whole().await?;
    let mut done = json!({});
    for whole in choices {
        done = shape.line(&model, &whole.text, &whole.calls, &whole.logprobs);
        finish(&mut done, &whole.end.reason, received, load_time, &usage);
    }
    Ok(Json(done).into_response())
}

/// Ollama's names have tags; a name without one means `latest`.
fn known<'a>(app: &App, model: &'a str) -> &'a str {
    match model.strip_suffix(":latest") {
        Some(name) if app.models.find(model).is_err() => name,
        _ => model,
    }
}

async fn lease(app: &App, fields: &Fields, caller: &Caller) -> Result<Lease, ApiError> {
    let id = fields.peek("model");
    app.lease_by(id.as_str().map(|id| known(app, id)), fields, caller).await
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

fn finish(line: &mut Value, reason: &Reason, received: Instant, load_time: Duration, usage: &Usage) {
    let now = Instant::now();
    let first = usage.first_token.unwrap_or(now);
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    line["done"] = true.into();
    line["done_reason"] = if *reason == Reason::Length { "length" } else { "stop" }.into();
    line["total_duration"] = nanos(now - received).into();
    line["load_duration"] = nanos(load_time).into();
    line["prompt_eval_count"] = usage.prompt_tokens.into();
    line["prompt_eval_duration"] = nanos(first.saturating_duration_since(usage.begin)).into();
    line["eval_count"] = usage.completion_tokens.into();
    line["eval_duration"] = nanos(now - first).into();
}

struct Stream {
    model: String,
    shape: Shape,
    received: Instant,
    load_time: Duration,
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
        finish(&mut line, &self.reason, self.received, self.load_time, usage);
        vec![Frame::data(&line)]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&error.ollama_body())]
    }
}

/// A request for embeddings, checked. `is_old` is `/api/embeddings`, which takes one text.
pub(crate) fn embed_request(fields: &mut Fields, is_old: bool) -> Result<(String, Embed, Option<KeepAlive>), ApiError> {
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
    let keep_alive = keep_alive(fields)?;
    if let Some(mut options) = fields.inner("options")? {
        // Nothing is sampled.
        options.finish_but(REFUSED_OPTIONS)?;
    }
    fields.finish()?;
    Ok((model, Embed { param, inputs, pooling: Pooling::Last, dimensions, truncate }, keep_alive))
}

async fn embed_lease(
    app: &App,
    caller: &Caller,
    fields: &mut Fields,
    is_old: bool,
) -> Result<(Lease, String, Embed), ApiError> {
    // Read first: a request that is wrong loads no model.
    let id = fields.peek("model");
    let (model, embed, keep_alive) = embed_request(fields, is_old)?;
    let lease = app.lease_by(id.as_str().map(|id| known(app, id)), fields, caller).await?;
    if let Some(keep_alive) = keep_alive {
        lease.keep_alive(keep_alive);
    }
    let model = lease.answers_for(model);
    Ok((lease, model, embed))
}

/// `POST /api/embed`.
pub(super) async fn embed(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let (lease, model, embed) = embed_lease(&app, &caller, &mut fields, false).await?;
    let (vectors, tokens) = embed.run(&caller, &lease).await?;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok(Json(json!({
        "model": model,
        "embeddings": vectors,
        "total_duration": nanos(caller.received.elapsed()),
        "load_duration": nanos(lease.load_time),
        "prompt_eval_count": tokens,
    })))
}

/// `POST /api/embeddings`, the older form.
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let (lease, _, embed) = embed_lease(&app, &caller, &mut fields, true).await?;
    let (vectors, _) = embed.run(&caller, &lease).await?;
    Ok(Json(json!({"embedding": vectors.into_iter().next()})))
}

/// `GET /api/version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /api/tags`: the models and their adapters, loaded or not.
pub(super) async fn tags(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let mut models = Vec::new();
    for entry in app.models.entries()? {
        let (status, digest) = (entry.status(), entry.digest().await);
        models.extend(entry.ids().map(|id| listing(&status, digest.as_deref(), id)));
    }
    Ok(Json(json!({"models": models})))
}

/// `GET /api/ps`: the models that are loaded.
pub(super) async fn ps(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let mut models = Vec::new();
    for entry in app.models.entries()? {
        let status = entry.status();
        if !status.is_loaded {
            continue;
        }
        let mut listing = listing(&status, entry.digest().await.as_deref(), &entry.id);
        if status.total_bytes > 0 {
            listing["size"] = status.total_bytes.into();
        }
        listing["size_vram"] = 0.into();
        listing["context_length"] = status.about.context.into();
        // A hundred years are for ever to a client.
        let left = status.expires.map_or(100 * 365 * 86_400, |left| left.as_secs().min(100 * 365 * 86_400));
        listing["expires_at"] = date(unix_now() + left).into();
        models.push(listing);
    }
    Ok(Json(json!({"models": models})))
}

/// `POST /api/show`. Loads nothing.
pub(super) async fn show(State(app): State<Arc<App>>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let model = show_request(&mut fields)?;
    let (entry, _) = app.models.find(known(&app, &model))?;
    let status = entry.status();
    let about = &status.about.description;
    let mut capabilities = vec!["completion", "embedding"];
    if about.chat_template.as_deref().is_some_and(|template| crate::tools::Form::of_template(template).is_some()) {
        capabilities.push("tools");
    }
    let architecture = about.architecture.as_str();
    let mut info = json!({
        "general.architecture": architecture,
        "general.parameter_count": about.parameters,
    });
    info[format!("{architecture}.context_length")] = status.about.context.into();
    info[format!("{architecture}.embedding_length")] = about.hidden_size.into();
    Ok(Json(json!({
        "modified_at": date(status.about.modified),
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

/// Without a digest where the files cannot be read, or there are none.
fn listing(status: &Status, digest: Option<&str>, id: &str) -> Value {
    let about = &status.about.description;
    let mut listing = json!({
        "name": id,
        "model": id,
        "modified_at": date(status.about.modified),
        "size": about.size_bytes,
        "details": details(about),
    });
    if let Some(digest) = digest {
        listing["digest"] = digest.into();
    }
    listing
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
    rfc3339(SystemTime::now(), Fraction::Nanos)
}

/// Of a Unix time.
fn date(seconds: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds), Fraction::Nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!((parameter_size(5_060_000), parameter_size(1_240_000_000)), ("5.1M".into(), "1.2B".into()));
    }
}
