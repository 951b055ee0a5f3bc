#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    Backend, Description, KvLimit, Lanes,
    api::{check::read, fields::Fields},
    error::ApiError,
};
use edgelm_engine::{Constraint, EngineError, Grammar, LoadedAdapter, Pooling};
use edgelm_model::{GenerationConfig, Message};
use std::{fmt::Write as _, fs, path::Path, sync::Arc};

/// Enough of a model to check requests.
#[derive(Default)]
struct Nothing(GenerationConfig, Description);

impl Backend for Nothing {
    fn name(&self) -> &str {
        "m"
    }
    fn context(&self) -> usize {
        100
    }
    fn vocab_size(&self) -> usize {
        100
    }
    fn defaults(&self) -> &GenerationConfig {
        &self.0
    }
    fn description(&self) -> &Description {
        &self.1
    }
    fn chat_prompt(&self, _: &[Message], _: &Map<String, Value>) -> Result<Vec<u32>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn text_prompt(&self, _: &str) -> Result<Vec<u32>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn tokens(&self, _: &str) -> Result<Vec<u32>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn text(&self, _: &[u32]) -> Result<String, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn control_token(&self, _: &str) -> Option<u32> {
        None
    }
    fn grammar(&self, _: &Constraint) -> Result<Grammar, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn embed(&self, _: &[u32], _: Pooling, _: Option<Arc<LoadedAdapter>>) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn token_text(&self, _: u32) -> String {
        String::new()
    }
    fn adapters(&self) -> &[(String, Arc<LoadedAdapter>)] {
        &[]
    }
    fn kv_limit(&self) -> Option<KvLimit> {
        None
    }
    fn probe(&self, _: &crate::ProbeText, _: crate::Patience<'_>) -> Result<Option<crate::Probe>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
}

fn parse(path: &str, fields: &mut Fields) -> Result<(), ApiError> {
    read(path, fields, &Nothing::default())
}

/// A body with the fields that are required, and no others.
fn least(endpoint: &Endpoint) -> Value {
    let mut body = json!({});
    for (name, _, _) in endpoint.fields.iter().copied().flatten() {
        match *name {
            "model!" => body["model"] = json!("m"),
            "messages!" => body["messages"] = json!([{"role": "user", "content": "x"}]),
            "max_tokens!" => body["max_tokens"] = json!(1),
            "tokens!" => body["tokens"] = json!([1]),
            name if name.ends_with('!') => body[name.trim_end_matches('!')] = json!("x"),
            _ => {}
        }
    }
    match endpoint.path {
        "/api/show" => body["model"] = json!("m"),
        "/tokenize" => body["prompt"] = json!("x"),
        _ => {}
    }
    body
}

fn posts() -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().filter(|endpoint| endpoint.method == "post")
}

#[test]
fn fields_are_those_that_are_read() {
    for endpoint in posts() {
        let mut fields = Fields::parse(least(endpoint).to_string().as_bytes()).unwrap();
        if let Err(error) = parse(endpoint.path, &mut fields) {
            panic!("{}: {error}", endpoint.path);
        }
        let mut documented: Vec<&str> =
            endpoint.fields.iter().copied().flatten().map(|(name, _, _)| name.trim_end_matches('!')).collect();
        documented.sort_unstable();
        let mut refused: Vec<&str> = endpoint.refused.iter().copied().flatten().copied().collect();
        refused.sort_unstable();
        let [read_honoured, read_refused] = fields.asked();
        assert_eq!(read_honoured, documented, "honoured by {}", endpoint.path);
        assert_eq!(read_refused, refused, "refused by {}", endpoint.path);
    }
}

#[test]
fn required_fields_are_required_and_others_are_not_known() {
    for endpoint in posts() {
        let body = least(endpoint);
        for (name, _, _) in endpoint.fields.iter().copied().flatten().filter(|field| field.0.ends_with('!')) {
            let name = name.trim_end_matches('!');
            let mut body = body.clone();
            body.as_object_mut().unwrap().remove(name);
            let error = parse(endpoint.path, &mut Fields::parse(body.to_string().as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.body()["error"]["param"], name, "{}", endpoint.path);
        }
        let mut body = body.clone();
        body["no_such_field"] = json!(1);
        let error = parse(endpoint.path, &mut Fields::parse(body.to_string().as_bytes()).unwrap()).unwrap_err();
        assert_eq!(error.body()["error"]["code"], "unknown_parameter", "{}", endpoint.path);
    }
}

/// Whatever stands in a field, the answer is a request or a refusal; and a refusal names the field.
#[test]
fn values_of_any_kind_are_read_or_refused() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("é\u{0}\u{1f600}"),
        json!([]),
        json!([[]]),
        json!([{}]),
        json!([null]),
        json!([1, "a", {}]),
        json!({}),
        json!({"type": "function"}),
        json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
        json!([{"role": "assistant", "content": [{"type": "text"}]}]),
        json!([{"role": "tool", "tool_call_id": "x", "content": []}]),
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}]),
        json!([{"name": "f", "input_schema": {}}]),
    ];
    let mut refusals = 0;
    for endpoint in posts() {
        let honoured = endpoint.fields.iter().copied().flatten().map(|field| field.0.trim_end_matches('!'));
        for name in honoured.chain(endpoint.refused.iter().copied().flatten().copied()) {
            for value in &values {
                let mut body = least(endpoint);
                body[name] = value.clone();
                let Err(error) = parse(endpoint.path, &mut Fields::parse(body.to_string().as_bytes()).unwrap()) else {
                    continue;
                };
                refusals += 1;
                let body = error.body();
                let param = body["error"]["param"].as_str().unwrap_or_default();
                // Two fields may contradict each other, and the other one is named then.
                let is_named = param.starts_with(name) || body["error"]["message"].as_str().unwrap().contains(name);
                let is_pair = ["tool_choice", "tools", "top_logprobs", "prompt"].contains(&param);
                assert!(is_named || is_pair, "{} {name}: {value}: {body}", endpoint.path);
            }
        }
    }
    assert!(refusals > 1000, "{refusals}");
}

#[test]
fn routes_are_those_of_the_router() {
    let router = include_str!("../mod.rs");
    let mut routes: Vec<String> = router
        .match_indices(".route(")
        .map(|(at, _)| {
            let mut quoted = router[at..].splitn(3, '"').skip(1);
            let (path, rest) = (quoted.next().unwrap(), quoted.next().unwrap());
            let method = if rest.trim_start_matches([',', ' ', '\n']).starts_with("get") { "get" } else { "post" };
            format!("{method} {}", path.replace("{*id}", "{id}"))
        })
        .collect();
    let mut documented: Vec<String> =
        ENDPOINTS.iter().map(|endpoint| format!("{} {}", endpoint.method, endpoint.path)).collect();
    routes.sort();
    documented.sort();
    assert_eq!(documented, routes);
}

/// `docs/api.md` says what the tables say.
#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let page = page();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/api.md is out of date: run this test with UPDATE_REFERENCE=1");
}

fn page() -> String {
    let mut page = include_str!("intro.md").to_owned();
    for api in ["OpenAI", "Anthropic", "Ollama", "EdgeLM"] {
        writeln!(page, "\n## {api}").unwrap();
        for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.api == api) {
            writeln!(page, "\n### `{} {}`\n\n{}.", endpoint.method.to_uppercase(), endpoint.path, endpoint.about)
                .unwrap();
            if !endpoint.fields.is_empty() {
                writeln!(page, "\n| field | type | |\n|---|---|---|").unwrap();
            }
            for (name, types, about) in endpoint.fields.iter().copied().flatten() {
                let required = if name.ends_with('!') { "required; " } else { "" };
                let name = name.trim_end_matches('!');
                writeln!(page, "| `{name}` | {} | {required}{about} |", types.replace('|', " or ")).unwrap();
            }
            let refused: Vec<String> =
                endpoint.refused.iter().copied().flatten().map(|name| format!("`{name}`")).collect();
            if !refused.is_empty() {
                writeln!(page, "\nRefused, unless the value asks for nothing: {}.", refused.join(", ")).unwrap();
            }
        }
    }
    page
}
