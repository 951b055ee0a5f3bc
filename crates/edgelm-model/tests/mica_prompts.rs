//! The demo model's chat prompts, token by token as its reference run saw them.
#![allow(clippy::unwrap_used)]

use edgelm_model::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value};
use std::path::Path;

#[test]
fn prompts_have_the_tokens_of_the_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asset = |name: &str| std::fs::read(root.join("../edgelm/assets/mica-5m").join(name)).unwrap();
    let config = asset("tokenizer_config.json");
    let tokenizer = Tokenizer::from_json(&asset("tokenizer.json"), Some(&config)).unwrap();
    let template = ChatTemplate::from_hf(Some(&config), None).unwrap().unwrap();
    let reference: Value = serde_json::from_slice(&asset("reference.json")).unwrap();
    let prompts = std::fs::read_to_string(root.join("../../testdata/model/mica-prompts.jsonl")).unwrap();
    let prompts: Vec<Value> = prompts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = reference["greedy"].as_array().unwrap();
    assert_eq!(prompts.len(), expected.len());
    for (prompt, expected) in prompts.iter().zip(expected) {
        assert_eq!(prompt["line"], expected["line"]);
        let text = template.render(prompt["messages"].as_array().unwrap(), true, &Map::new()).unwrap();
        let ids = tokenizer.encode_chat(&text).unwrap();
        assert_eq!(serde_json::to_value(ids).unwrap(), expected["prompt_tokens"], "line {}", prompt["line"]);
    }
}
