//! From a path to a checked checkpoint.

use super::{
    Checkpoint, Store, Texts,
    files::Files,
    packed::{PackedFolder, Quantization},
    verify,
};
use crate::{
    GenerationConfig, ModelConfig, ModelError, TensorId, Tokenizer, config::GgufTensors, config::parse_object,
};
use edgelm_format::{FormatError, gguf::GgufFile};
use edgelm_tensor::DType;
use serde_json::Value;
use std::{io::Read, path::Path, sync::Arc};

pub(super) fn from_path(path: &Path) -> Result<Checkpoint, ModelError> {
    if is_gguf(path)? { from_gguf(path) } else { from_folder(name_of(path), Files::Folder(path.to_owned())) }
}

/// True for a GGUF file, false for a folder; an error for anything else.
pub(super) fn is_gguf(path: &Path) -> Result<bool, ModelError> {
    let failed = |source| FormatError::Io { path: path.to_owned(), action: "opening", source };
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(false);
    }
    let mut magic = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(4).read_to_end(&mut magic).map_err(failed)?;
    if magic == b"GGUF" || path.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(true);
    }
    let what = match path.parent() {
        Some(folder) if folder.join("config.json").is_file() => {
            "is not a GGUF file; for a Hugging Face model give the folder that it lies in"
        }
        _ => "is neither a GGUF file nor a Hugging Face folder",
    };
    Err(ModelError::Config { path: path.to_owned(), what: what.to_owned() })
}

pub(super) fn from_folder(name: String, files: Files) -> Result<Checkpoint, ModelError> {
    let root = files.root().to_owned();
    let Some(text) = files.read("config.json")? else {
        let what = match files.names().iter().find(|name| name.ends_with(".gguf")) {
            Some(gguf) => format!("no `config.json` here; to use `{gguf}` give that file"),
            None => "no `config.json` here".to_owned(),
        };
        return Err(ModelError::Config { path: root, what });
    };
    let mut config = ModelConfig::from_hf(&text, &root.join("config.json"))?;
    let mut generation = GenerationConfig::default();
    if let Some(text) = files.read("generation_config.json")? {
        let (defaults, eos) = GenerationConfig::from_hf(&text, &root.join("generation_config.json"))?;
        generation = defaults;
        config.eos_token_ids.extend(eos);
    }
    config.eos_token_ids.extend(tokenizer_eos(&files)?);
    config.eos_token_ids.sort_unstable();
    config.eos_token_ids.dedup();
    let weights = files.open_weights()?;
    let store = match parse_object(&text, &root.join("config.json"))?.get("quantization_config") {
        None | Some(Value::Null) => Store::Safetensors(weights),
        Some(value) => {
            let quantization = Quantization::from_json(value, &root.join("config.json"))?;
            let embedding = config.arch.hf_tensor_name(TensorId::TokenEmbedding);
            let class_of = |weight: &str| if weight == embedding { "Embedding" } else { "Linear" };
            Store::Packed(PackedFolder::open(weights, &quantization, class_of)?)
        }
    };
    finish(&root, name, (config, generation), store, Texts::of_folder(files))
}

fn from_gguf(path: &Path) -> Result<Checkpoint, ModelError> {
    let file = Arc::new(GgufFile::open(path)?);
    let shape = |name: &str| file.info(name).map(|info| info.shape.to_vec());
    let long_factors = factors(&file, verify::SHORT_FACTORS)?.zip(factors(&file, verify::LONG_FACTORS)?);
    let tensors = GgufTensors { shape: &shape, rope_factors: factors(&file, verify::ROPE_FACTORS)?, long_factors };
    let config = ModelConfig::from_gguf(file.metadata(), tensors, path)?;
    let generation = GenerationConfig::from_gguf(file.metadata());
    let texts = Texts::of_gguf(path, Arc::clone(&file));
    finish(path, gguf_name(path), (config, generation), Store::Gguf(file), texts)
}

fn finish(
    path: &Path,
    name: String,
    (config, generation): (ModelConfig, GenerationConfig),
    store: Store,
    texts: Texts,
) -> Result<Checkpoint, ModelError> {
    let prefix = verify::prefix(&config, &store);
    let ids = verify::tensors(&config, &store, prefix, path)?;
    let shapes = verify::shapes(&config, &ids);
    let (store, texts) = (Arc::new(store), Arc::new(texts));
    Ok(Checkpoint { path: path.to_owned(), name, config, generation, store, ids, shapes, prefix, texts, form: None })
}

/// The folder's own name, also where the path is `.` or ends in `..`.
fn name_of(path: &Path) -> String {
    let full = path.canonicalize();
    let name = path.file_name().or_else(|| full.as_ref().ok()?.file_name());
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The file's stem, without the part number of a split file.
fn gguf_name(path: &Path) -> String {
    let stem = path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    match stem.rsplit_once("-of-") {
        Some((front, total)) if digits(total) => match front.rsplit_once('-') {
            Some((name, part)) if digits(part) && !name.is_empty() => name.to_owned(),
            _ => stem,
        },
        _ => stem,
    }
}

/// Divisors of the rotary frequencies.
fn factors(file: &GgufFile, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(view) = file.get(name)? else { return Ok(None) };
    if view.dtype != DType::F32 {
        let what = format!("tensor `{name}` is stored as {}, must be F32", view.dtype);
        return Err(ModelError::Config { path: file.path().to_owned(), what });
    }
    let value = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(f32::NAN, f32::from_le_bytes);
    Ok(Some(view.bytes.chunks_exact(4).map(value).collect()))
}

/// The id of tokenizer_config.json's `eos_token`.
fn tokenizer_eos(files: &Files) -> Result<Option<u32>, ModelError> {
    let Some(text) = files.read("tokenizer_config.json")? else { return Ok(None) };
    let map = parse_object(&text, &files.root().join("tokenizer_config.json"))?;
    // A token is given as its text or as an object with it.
    let content = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let Some(eos) = map.get("eos_token").and_then(content) else { return Ok(None) };
    if let Some(Value::Object(added)) = map.get("added_tokens_decoder")
        && let Some((id, _)) = added.iter().find(|(_, token)| content(token).as_ref() == Some(&eos))
    {
        return Ok(id.parse().ok());
    }
    let Some(tokenizer) = files.read("tokenizer.json")? else { return Ok(None) };
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    // The vocabulary is skipped, not built: this runs whenever a model is opened.
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let path = files.root().join("tokenizer.json");
    let file: File = serde_json::from_slice(&tokenizer)
        .map_err(|reason| ModelError::Config { path, what: format!("is not a tokenizer: {reason}") })?;
    if let Some(token) = file.added_tokens.into_iter().find(|token| token.content == eos) {
        return Ok(Some(token.id));
    }
    Ok(Tokenizer::from_json(&tokenizer, Some(&text))?.token_to_id(&eos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(gguf_name(Path::new("a/smol-q4.gguf")), "smol-q4");
        assert_eq!(gguf_name(Path::new("smol-00001-of-00003.gguf")), "smol");
        assert_eq!(gguf_name(Path::new("one-of-many.gguf")), "one-of-many");
        assert_eq!(name_of(Path::new("a/smol/")), "smol");
        assert_ne!(name_of(Path::new(".")), "model");
    }
}
