//! A model that requests can be checked against, and nothing more.

use edgelm_engine::{Constraint, EngineError, Grammar, LoadedAdapter, Pooling};
use edgelm_model::{GenerationConfig, Message};
use edgelm_serve::{Backend, Description, KvLimit, Lanes, Patience, Probe, ProbeText};
use serde_json::{Map, Value};
use std::sync::{Arc, LazyLock};

/// Enough of a model to check requests.
pub struct Nothing(GenerationConfig, Description);

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
    fn probe(&self, _: &ProbeText, _: Patience<'_>) -> Result<Option<Probe>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
    fn lanes(&self) -> Result<Box<dyn Lanes + '_>, EngineError> {
        Err(EngineError::EmptyPrompt)
    }
}

pub static BACKEND: LazyLock<Nothing> = LazyLock::new(|| {
    let about = Description { chat_template: Some("tools <tool_call>".to_owned()), ..Description::default() };
    Nothing(GenerationConfig::default(), about)
});
