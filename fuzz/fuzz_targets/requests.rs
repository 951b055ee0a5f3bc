//! Bodies of requests, by every route that takes one: they are read or refused, never a panic.
#![no_main]

use edgelm_engine::{Constraint, EngineError, Grammar, LoadedAdapter, Pooling};
use edgelm_model::{GenerationConfig, Message};
use edgelm_serve::{Backend, Description, KvLimit, Lanes, check_request};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use std::sync::{Arc, LazyLock};

const PATHS: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/generate",
    "/tokenize",
    "/detokenize",
];

/// Enough of a model to check requests.
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
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
}

static BACKEND: LazyLock<Nothing> = LazyLock::new(|| {
    let about = Description { chat_template: Some("tools <tool_call>".to_owned()), ..Description::default() };
    Nothing(GenerationConfig::default(), about)
});

fuzz_target!(|data: &[u8]| {
    let Some((&first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(first) % PATHS.len()];
    if let Err(error) = check_request(path, body, &*BACKEND) {
        assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string());
    }
});
