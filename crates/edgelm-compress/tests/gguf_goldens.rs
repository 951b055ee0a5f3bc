//! Tiny checkpoints written as GGUF files and read again: the same logits, or a refusal that says why.
//!
//! The folders of `testdata/goldens`; with the shared goldens at hand (EDGELM_SHARED, or `shared/` beside the repository),
//! those too. With EDGELM_KEEP_GGUF naming a folder, the files are left there for other programs to read.
#![allow(clippy::unwrap_used)]

use edgelm_compress::{CompressError, Formats, Method, QuantizeOptions, Scheme, export, quantize};
use edgelm_engine::{Engine, EngineError, Step, Want, Workspace};
use edgelm_format::safetensors::{SafeTensors, Writer};
use edgelm_kernels::Cpu;
use edgelm_model::{Checkpoint, LayerTensor, ModelError, TensorId};
use edgelm_tensor::DType;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Of the goldens' README: f32 arithmetic, largest difference of any logit.
const TOLERANCE: f32 = 1e-4;

/// What the files of a family cannot say: the start of a golden's name, and what the error says.
const REFUSED: &[(&str, &str)] = &[
    ("bloom-postln", "residual"),
    // Its halves follow each other, too.
    ("falcon-alibi", "norms"),
    // Only the root of the head size can be said, and of the 27B models' hidden size per head.
    ("gemma2", "attention scale"),
    ("gemma3", "attention scale"),
    ("gpt2-bare", "scale of scores by layer"),
    // The tanh form of GELU.
    ("gpt_neox-sequential", "activation"),
    // Two rotary bases.
    ("granite_swa", "rotary embedding"),
    ("lfm2-autoff", "biases of short convolutions"),
    // Factors that llama.cpp has for the one model of this family.
    ("minicpm3", "scale of embeddings"),
    ("phi-qknorm", "norms"),
    ("qwen3_moe", "layers without experts"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn shared() -> PathBuf {
    std::env::var_os("EDGELM_SHARED").map_or(root().join("../shared"), PathBuf::from).join("goldens")
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("expected.json").exists() && path.join("config.json").exists());
    folders.sort();
    folders
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

/// `gemma3` is the start of `gemma3-multimodal`, not of `gemma3n`.
fn is_of(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn logits(checkpoint: Checkpoint, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
    let engine = Engine::load(Arc::new(checkpoint), Arc::new(Cpu::new(Some(1), None).unwrap()))?;
    let mut sequence = engine.sequence(engine.default_kv());
    let mut workspace = Workspace::default();
    engine.forward(&mut [Step { sequence: &mut sequence, tokens, want: Want::All }], &mut workspace)?;
    Ok(workspace.logits().to_vec())
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The folder as a file of f32 weights.
fn write(checkpoint: &Checkpoint, file: &Path) -> Result<(), CompressError> {
    let options = QuantizeOptions {
        formats: Formats::Scheme(Scheme::from_name("F32")?),
        keep: &[],
        method: Method::Rtn,
        store: None,
    };
    quantize(checkpoint, file, &options, &mut |_, _, _| ControlFlow::Continue(())).map(|_| ())
}

/// The largest difference of any logit of the golden, once in a file and back.
fn through_gguf(folder: &Path, file: &Path) -> Result<f32, CompressError> {
    let checkpoint = Checkpoint::open(folder)?;
    write(&checkpoint, file)?;
    // The reference of Youtu has zeros for a row that is stored: what it says is not said of the stored weights.
    match checkpoint.config().arch.name {
        "youtu" => Ok(distance_from_folder(checkpoint, file)?),
        _ => Ok(distance(folder, file)?),
    }
}

/// The largest difference of any logit of the file from those of the folder, beyond windows of 32 positions.
fn distance_from_folder(folder: Checkpoint, file: &Path) -> Result<f32, ModelError> {
    let vocabulary = folder.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..96).map(|i| (i * 37 + i * i) % vocabulary).collect();
    Ok(worst(&logits(Checkpoint::open(file)?, &tokens).unwrap(), &logits(folder, &tokens).unwrap()))
}

/// The largest difference of any logit of the file from those of the golden.
fn distance(folder: &Path, file: &Path) -> Result<f32, ModelError> {
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut error: f32 = 0.0;
    for prompt in ["prompt", "long_prompt"] {
        let prompt = &expected[prompt];
        let got = logits(Checkpoint::open(file)?, &ids(&prompt["ids"])).unwrap();
        let rows = prompt["logits"].as_array().unwrap();
        let positions = prompt.get("positions").map_or((0..rows.len() as u32).collect(), ids);
        for (position, row) in positions.iter().zip(rows) {
            let want: Vec<f32> = row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            let start = *position as usize * want.len();
            error = error.max(worst(&got[start..][..want.len()], &want));
        }
    }
    Ok(error)
}

fn check(folders: &[PathBuf]) {
    let temporary = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("EDGELM_KEEP_GGUF").map_or(temporary.path().to_owned(), PathBuf::from);
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for folder in folders {
        let name = name(folder);
        let has_no_form = Checkpoint::open(folder).is_ok_and(|golden| golden.config().arch.gguf_name.is_none());
        let reason = REFUSED.iter().find(|(start, _)| is_of(&name, start)).map(|(_, reason)| *reason);
        let reason = if has_no_form { Some("no GGUF form") } else { reason };
        let result = through_gguf(folder, &kept.join(format!("{name}.gguf")));
        match (result, reason) {
            (Ok(error), None) if error < TOLERANCE => passed.push(format!("{name} {error:.1e}")),
            (Ok(error), _) => failed.push(format!("{name}: written, logits differ by {error}")),
            (Err(CompressError::Model(ModelError::UnknownArchitecture { .. })), None) => {}
            (Err(CompressError::Model(ModelError::Export(what))), Some(reason)) if what.contains(reason) => {
                println!("{name} refused: {what}");
            }
            (Err(error), _) => failed.push(format!("{name}: {error}")),
        }
    }
    println!("passed: {}", passed.join(", "));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn committed_goldens_survive_gguf() {
    check(&folders(&root().join("testdata/goldens")));
}

#[test]
fn shared_goldens_survive_gguf_or_are_refused_by_name() {
    let folders = folders(&shared());
    if folders.is_empty() {
        println!("skipped: no shared goldens in {}", shared().display());
        return;
    }
    check(&folders);
}

/// Keys of a config and what they become.
type Values<'a> = &'a [(&'a str, Value)];

/// The new name of a tensor that stays.
type Rename = fn(&str) -> Option<String>;

/// A golden with other values in its config, and only the tensors that `rename` returns.
fn changed(folder: &Path, to: &Path, values: Values<'_>, rename: Rename) {
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in values {
        config[*key] = value.clone();
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let weights = SafeTensors::open_dir(folder).unwrap();
    let names: Vec<(&str, String)> = weights.names().filter_map(|name| Some((name, rename(name)?))).collect();
    let view = |name: &str| weights.get(name).unwrap().unwrap();
    let tensors: Vec<_> =
        names.iter().map(|(was, is)| (is.clone(), view(was).dtype, view(was).shape.to_vec())).collect();
    let mut writer = Writer::create(&to.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    names.iter().for_each(|(was, _)| writer.write(&view(was).bytes).unwrap());
    writer.finish().unwrap();
}

/// Models like those refused above, but such as GGUF can say: the folder and the file give the same logits.
#[test]
fn models_that_were_refused_for_one_value_survive_without_it() {
    let keep = |name: &str| Some(name.to_owned());
    let yarn =
        json!({"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 64});
    let goldens = root().join("testdata/goldens");
    let head_dim = |name: &str| {
        let config = std::fs::read(goldens.join(name).join("config.json")).unwrap();
        serde_json::from_slice::<Value>(&config).unwrap()["head_dim"].clone()
    };
    let deep_yarn = json!({
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "original_max_position_embeddings": 64,
        "mscale": 0.7, "mscale_all_dim": 0.9,
    });
    let second_layer: fn(&str) -> Option<String> = |name| match name.strip_prefix("model.layers.1.") {
        Some(rest) => Some(format!("model.layers.0.{rest}")),
        None => Some(name.to_owned()).filter(|name| !name.starts_with("model.layers.")),
    };
    let cases: [(&str, Values<'_>, Rename); 9] = [
        // Not refused, but llama.cpp computes only this form of YaRN.
        ("gpt_oss", &[("rope_parameters", yarn)], keep),
        ("gemma2", &[("query_pre_attn_scalar", head_dim("gemma2"))], keep),
        ("gemma3", &[("query_pre_attn_scalar", head_dim("gemma3"))], keep),
        ("deepseek_v2", &[("rope_parameters", deep_yarn)], keep),
        ("youtu", &[("rope_interleave", json!(false))], keep),
        ("minicpm3", &[("scale_emb", json!(12)), ("dim_model_base", json!(256))], keep),
        ("granite_swa", &[("layer_rope_theta", json!([10_000.0, 10_000.0, 0.0, 10_000.0]))], keep),
        // Without Mamba-2 it is a file of Granite MoE.
        (
            "granitemoehybrid",
            &[("num_hidden_layers", json!(1)), ("layer_types", json!(["full_attention"]))],
            second_layer,
        ),
        (
            "qwen3_moe",
            &[("mlp_only_layers", json!([])), ("num_hidden_layers", json!(1)), ("layer_types", Value::Null)],
            second_layer,
        ),
    ];
    for (name, values, rename) in cases {
        let golden = goldens.join(name);
        let folder = tempfile::tempdir().unwrap();
        changed(&golden, folder.path(), values, rename);
        let kept = std::env::var_os("EDGELM_KEEP_GGUF").map_or(folder.path().to_owned(), PathBuf::from);
        let file = kept.join(format!("{name}-changed.gguf"));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        write(&checkpoint, &file).unwrap();
        let error = distance_from_folder(checkpoint, &file).unwrap();
        assert!(error < TOLERANCE, "{name}: logits differ by {error}");
        println!("{name} {error:.1e}");
    }
}

/// The codes of a folder whose experts are in MXFP4 are those of the file.
#[test]
fn experts_in_mxfp4_stay_as_they_are() {
    let folder = shared().join("quantized/mxfp4-gpt_oss");
    if !folder.exists() {
        println!("skipped: no shared golden {}", folder.display());
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("experts.gguf");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    export(&checkpoint, &[], &file, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let read = Checkpoint::open(&file).unwrap();
    let mut experts = 0;
    for &id in checkpoint.tensor_ids() {
        let TensorId::Layer(_, LayerTensor::Expert(_, part)) = id else { continue };
        if part.dense().is_linear() {
            let (was, is) = (checkpoint.tensor(id).unwrap(), read.tensor(id).unwrap());
            assert_eq!((was.dtype, &was.bytes), (is.dtype, &is.bytes), "{id:?}");
            assert_eq!(is.dtype, DType::MXFP4);
            experts += 1;
        }
    }
    assert!(experts > 0);
    let error = distance_from_folder(checkpoint, &file).unwrap();
    assert_eq!(error, 0.0, "logits differ by {error}");
}

/// What llama.cpp's converter leaves out of the shared goldens, beside what GGUF cannot say.
const LOST: &[&str] = &[
    // Widths of feed-forward networks: it writes 4 D.
    "falcon-new-oneln",
    "gpt_bigcode",
    "phi",
    // Windows that llama.cpp does not compute.
    "mistral-swa",
    "qwen2-swa",
    "starcoder2",
    // The reference's own weights: see `through_gguf`.
    "youtu",
    // YaRN without rounding; dynamic scaling; the context length.
    "gpt_oss",
    "llama-rope-dynamic",
    "glm",
    // Its layers' names are others than that converter's.
    "granitemoehybrid",
    "granitemoehybrid-dense",
    "bloom",
];

/// Files that llama.cpp's converter made of shared goldens, without a tokenizer: EDGELM_CONVERTED names their folder.
#[test]
fn files_of_llama_cpp_are_read() {
    let Some(converted) = std::env::var_os("EDGELM_CONVERTED").map(PathBuf::from) else {
        println!("skipped: EDGELM_CONVERTED names no folder");
        return;
    };
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for folder in folders(&shared()) {
        let name = name(&folder);
        let file = converted.join(format!("{name}.gguf"));
        if !file.exists() || REFUSED.iter().any(|(start, _)| is_of(&name, start)) || LOST.contains(&name.as_str()) {
            continue;
        }
        match distance(&folder, &file) {
            Ok(error) if error < TOLERANCE => passed.push(format!("{name} {error:.1e}")),
            Ok(error) => failed.push(format!("{name}: logits differ by {error}")),
            Err(ModelError::UnknownArchitecture { .. }) => {}
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    println!("passed: {}", passed.join(", "));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
