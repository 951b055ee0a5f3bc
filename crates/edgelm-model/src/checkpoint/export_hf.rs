//! A checkpoint as the texts of a Hugging Face folder.

use super::{Checkpoint, files::Files};
use crate::{
    LayerConfig, ModelConfig, ModelError,
    config::{BESIDE_TEXT, parse_object},
};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Everything beside config and weights that a loader of such a folder may look for.
const COPIED: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "LICENSE",
    "NOTICE",
];

/// Name and content of a file.
pub type HfFile = (String, Cow<'static, [u8]>);

impl Checkpoint {
    /// Name and content of every file but the weights, for this model with config `config`: layers left out (`layers`
    /// says which of this checkpoint's are there), widths changed, the output head untied. Widths that differ between
    /// layers become lists. `quantization` becomes the `quantization_config`; without it the weights are floats.
    ///
    /// Errors for models from GGUF files: their tokenizer has no such form here.
    pub fn hf_files_with(
        &self,
        config: &ModelConfig,
        layers: &[usize],
        quantization: Option<Value>,
    ) -> Result<Vec<HfFile>, ModelError> {
        let Some(files) = self.texts.files() else {
            let what = "a model from a GGUF file can only be written as a GGUF file";
            return Err(ModelError::Export(what.to_owned()));
        };
        let path = files.root().join("config.json");
        let text = files.read("config.json")?.unwrap_or_default();
        let mut map = parse_object(&text, &path)?;
        if let Some(Value::Object(mut inner)) = map.remove("text_config") {
            // The decoder alone is written, as the model that it is.
            inner.insert("architectures".to_owned(), json!([config.arch.hf_name]));
            for key in BESIDE_TEXT {
                if let (Some(value), None) = (map.remove(*key), inner.get(*key)) {
                    inner.insert((*key).to_owned(), value);
                }
            }
            map = inner;
        }
        set_widths(&mut map, config, &self.config, layers);
        set_layers(&mut map, layers);
        // What is as it was keeps its words: a family may have its own.
        if config.hidden_size != self.config.hidden_size {
            map.insert("hidden_size".to_owned(), json!(config.hidden_size));
        }
        if config.tie_word_embeddings != self.config.tie_word_embeddings {
            map.insert("tie_word_embeddings".to_owned(), json!(config.tie_word_embeddings));
        }
        map.remove("quantization_config");
        if let Some(quantization) = quantization {
            map.insert("quantization_config".to_owned(), quantization);
        }
        let text = format!("{:#}\n", Value::Object(map)).into_bytes();
        // What is written is what this program reads back, or nothing is written.
        let back = ModelConfig::from_hf(&text, &path)?;
        let shape = |config: &ModelConfig| (config.hidden_size, config.tie_word_embeddings, config.layers.clone());
        if shape(&back) != shape(config) {
            return Err(ModelError::Export("config.json has no words for the changed sizes".to_owned()));
        }
        let mut out = vec![("config.json".to_owned(), Cow::Owned(text))];
        out.extend(copied(files)?);
        Ok(out)
    }

    /// Tokenizer, chat template, sampling defaults and licence: files of a folder as they are; of a GGUF file `tokenizer.json`
    /// and a `tokenizer_config.json` that say the same. None where the model has no tokenizer.
    pub fn text_files(&self) -> Result<Vec<HfFile>, ModelError> {
        if let Some(files) = self.texts.files() {
            return copied(files);
        }
        if !self.has_tokenizer() {
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer()?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        config.insert("add_bos_token".to_owned(), json!(tokenizer.adds_bos()));
        for (key, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
            if let Some(text) = text(id) {
                config.insert(key.to_owned(), json!(text));
            }
        }
        if let Some(template) = self.chat_template()? {
            config.insert("chat_template".to_owned(), json!(template.source()));
        }
        let config = format!("{:#}\n", Value::Object(config)).into_bytes();
        Ok(vec![
            ("tokenizer.json".to_owned(), Cow::Owned(tokenizer.to_json()?.into_bytes())),
            ("tokenizer_config.json".to_owned(), Cow::Owned(config)),
        ])
    }
}

/// The files of a folder that say nothing of its weights.
fn copied(files: &Files) -> Result<Vec<HfFile>, ModelError> {
    let mut out = Vec::new();
    for &name in COPIED {
        if let Some(content) = files.read(name)? {
            out.push((name.to_owned(), content));
        }
    }
    Ok(out)
}

/// Says the widths of `config`, where they are others than those that the file gave these layers: what it says without
/// naming a width (the one that LFM2 derives from another) stays as it is.
fn set_widths(map: &mut Map<String, Value>, config: &ModelConfig, was: &ModelConfig, layers: &[usize]) {
    let aliases = config.arch.aliases.iter().filter(|(usual, _)| *usual == "num_hidden_layers");
    let own = aliases.map(|(_, own)| *own).find(|own| map.contains_key(*own)).unwrap_or("num_hidden_layers");
    map.insert(own.to_owned(), json!(config.layers.len()));
    let is_same = |(layer, &source): (&LayerConfig, &usize)| was.layers.get(source) == Some(layer);
    let lists = ["num_attention_heads", "num_key_value_heads", "intermediate_size"];
    let has_list = lists.iter().any(|key| map.get(*key).is_some_and(Value::is_array));
    // A head's size may follow from the hidden size.
    let is_same_size = config.hidden_size == was.hidden_size;
    if is_same_size && config.layers.iter().zip(layers).all(is_same) && !has_list {
        return;
    }
    let mut set = |key: &str, size: fn(&LayerConfig) -> usize| {
        let sizes: Vec<usize> = config.layers.iter().map(size).collect();
        let value = match sizes[..] {
            [first, ..] if sizes.iter().all(|size| *size == first) => json!(first),
            _ => json!(sizes),
        };
        map.insert(key.to_owned(), value);
    };
    set("num_attention_heads", |layer| layer.num_attention_heads);
    set("num_key_value_heads", |layer| layer.num_key_value_heads);
    set("intermediate_size", |layer| layer.intermediate_size);
    // Implied by the number of heads where absent.
    set("head_dim", |layer| layer.head_dim);
}

/// What the file says layer by layer, or by the number of a layer.
fn set_layers(map: &mut Map<String, Value>, layers: &[usize]) {
    for key in ["layer_types", "layers_block_type"] {
        if let Some(Value::Array(types)) = map.get_mut(key) {
            *types = layers.iter().filter_map(|&layer| types.get(layer).cloned()).collect();
        }
    }
    if let Some(first) = map.get("max_window_layers").and_then(Value::as_u64) {
        let below = layers.iter().filter(|&&layer| (layer as u64) < first).count();
        map.insert("max_window_layers".to_owned(), json!(below));
    }
}
