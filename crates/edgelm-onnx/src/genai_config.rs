//! `genai_config.json`: how `onnxruntime-genai` runs the graph.

use crate::{
    attention::fused_head_dim,
    network::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS},
};
use edgelm_model::Checkpoint;
use serde_json::{Map, Value, json};

/// The kind of model that has no words of its own there: a decoder as its inputs and outputs say.
const TYPE: &str = "decoder";

/// The file. Sampling defaults are those of the model, greedy where it has none.
pub(crate) fn text(checkpoint: &Checkpoint, context: usize, with_positions: bool) -> Vec<u8> {
    let (config, generation) = (checkpoint.config(), checkpoint.generation());
    let layer = &config.layers[0];
    let mut inputs = Map::new();
    inputs.insert("input_ids".to_owned(), json!(INPUT_IDS));
    inputs.insert("attention_mask".to_owned(), json!(ATTENTION_MASK));
    if with_positions {
        inputs.insert("position_ids".to_owned(), json!(POSITION_IDS));
    }
    inputs.insert("past_key_names".to_owned(), json!("past_key_values.%d.key"));
    inputs.insert("past_value_names".to_owned(), json!("past_key_values.%d.value"));
    let eos = match config.eos_token_ids[..] {
        [one] => json!(one),
        _ => json!(config.eos_token_ids),
    };
    let first = config.eos_token_ids.first().copied();
    let mut model = Map::new();
    if let Some(bos) = config.bos_token_id.or(first) {
        model.insert("bos_token_id".to_owned(), json!(bos));
    }
    model.insert("context_length".to_owned(), json!(context));
    model.insert(
        "decoder".to_owned(),
        json!({
            "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
            "filename": "model.onnx",
            "head_size": fused_head_dim(layer),
            "hidden_size": config.hidden_size,
            "inputs": inputs,
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": layer.num_attention_heads,
            "num_hidden_layers": config.layers.len(),
            "num_key_value_heads": layer.num_key_value_heads,
        }),
    );
    model.insert("eos_token_id".to_owned(), eos);
    model.insert("pad_token_id".to_owned(), json!(first.or(config.bos_token_id).unwrap_or(0)));
    model.insert("type".to_owned(), json!(TYPE));
    model.insert("vocab_size".to_owned(), json!(config.vocab_size));
    let document: Value = json!({
        "model": model,
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": generation.do_sample.unwrap_or(false),
            "early_stopping": true,
            "length_penalty": 1.0,
            "max_length": context,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": true,
            "repetition_penalty": generation.repetition_penalty.unwrap_or(1.0),
            "temperature": generation.temperature.unwrap_or(1.0),
            "top_k": generation.top_k.unwrap_or(50),
            "top_p": generation.top_p.unwrap_or(1.0),
        },
    });
    format!("{document:#}\n").into_bytes()
}
