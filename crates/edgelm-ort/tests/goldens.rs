//! Exported checkpoints in ONNX Runtime against the logits of transformers. Skipped, with the reason, where there is no library.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{Decoding, EngineError};
use edgelm_model::Checkpoint;
use edgelm_onnx::{Floats, OnnxOptions, OnnxStyle, export, unsupported};
use edgelm_ort::{OrtError, OrtModel, OrtOptions, Provider};
use serde_json::Value;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Largest difference of any logit; they have a spread of about 1.
const TOLERANCE: f32 = 1e-4;

/// The same where inputs are rounded to int8 with fixed scales: a value on the border of two codes may fall either way.
const TOLERANCE_INT8_INPUTS: f32 = 0.15;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn folders(name: &str) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(testdata().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("config.json").exists() && path.join("expected.json").exists());
    folders.sort();
    folders
}

fn options() -> OrtOptions {
    OrtOptions { provider: Provider::Cpu, threads: 1, exact: true }
}

/// The exported model; `None`, with the reason printed, where there is no library.
fn open(folder: &Path, style: OnnxStyle, floats: Floats) -> Option<(OrtModel, tempfile::TempDir)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    if unsupported(checkpoint.config(), style).is_some() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options_of = OnnxOptions { style, floats, int8_inputs: false, context: None };
    export(&checkpoint, options_of, &out, &mut |_, _| ControlFlow::Continue(())).unwrap();
    match OrtModel::open(&out, options()) {
        Ok(model) => Some((model, dir)),
        Err(error @ OrtError::Library { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{} {style}: {error}", folder.display()),
    }
}

fn has_library() -> bool {
    open(&testdata().join("goldens/llama-bias"), OnnxStyle::Qdq, Floats::F32).is_some()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn flat(value: &Value) -> Vec<f32> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    value.as_array().unwrap().iter().flat_map(row).collect()
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

/// At once, in steps through the cache, after a truncation; and greedily, where the file says how that goes.
fn compare(folder: &Path, style: OnnxStyle, tolerance: f32) -> bool {
    let Some((mut model, _dir)) = open(folder, style, Floats::F32) else { return false };
    let want = expected(folder);
    // Checkpoints of other programs' formats have no more than a prompt.
    let prompt = if want["prompt"].is_null() { &want } else { &want["prompt"] };
    let (tokens, logits) = (ids(&prompt["ids"]), flat(&prompt["logits"]));
    let what = format!("{} {style}", folder.display());
    let v = model.vocab_size();
    let mut got = Vec::new();
    let mut sequence = model.sequence();
    sequence.forward(&tokens, tokens.len(), &mut got).unwrap();
    assert!(worst(&got, &logits) <= tolerance, "{what}: {}", worst(&got, &logits));
    let half = tokens.len() / 2;
    sequence.truncate(half).unwrap();
    assert_eq!(sequence.tokens(), &tokens[..half]);
    for (at, &token) in tokens.iter().enumerate().skip(half) {
        sequence.forward(&[token], 1, &mut got).unwrap();
        let difference = worst(&got, &logits[at * v..(at + 1) * v]);
        assert!(difference <= tolerance, "{what}: {difference} at {at}");
    }
    if !want["long_prompt"].is_null() {
        let long = &want["long_prompt"];
        sequence.truncate(0).unwrap();
        sequence.forward(&ids(&long["ids"]), usize::MAX, &mut got).unwrap();
        let rows: Vec<f32> =
            ids(&long["positions"]).iter().flat_map(|&at| got[at as usize * v..][..v].to_vec()).collect();
        let difference = worst(&rows, &flat(&long["logits"]));
        assert!(difference <= tolerance, "{what}: {difference} of the long prompt");
    }
    if tolerance == TOLERANCE && !want["greedy"].is_null() {
        sequence.truncate(0).unwrap();
        sequence.forward(&tokens, 1, &mut got).unwrap();
        for token in ids(&want["greedy"]["ids"]) {
            assert_eq!(argmax(&got), token, "{what}");
            sequence.forward(&[token], 1, &mut got).unwrap();
        }
    }
    true
}

#[test]
fn exported_goldens_have_the_reference_logits() {
    if !has_library() {
        return;
    }
    for style in [OnnxStyle::Qdq, OnnxStyle::Genai] {
        let compared = folders("goldens").iter().filter(|folder| compare(folder, style, TOLERANCE)).count();
        assert!(compared >= 50, "{compared}");
        println!("{style}: {compared} checkpoints");
    }
}

#[test]
fn codes_of_other_programs_mean_the_same() {
    if !has_library() {
        return;
    }
    for style in [OnnxStyle::Qdq, OnnxStyle::Genai] {
        let quantized = ["goldens/quantized", "bitsandbytes", "compressed-tensors"].into_iter().flat_map(folders);
        for folder in quantized {
            let is_static = folder.ends_with("w8a8-static");
            compare(&folder, style, if is_static { TOLERANCE_INT8_INPUTS } else { TOLERANCE });
        }
    }
}

#[test]
fn half_precision_weights_cost_little() {
    let folder = testdata().join("goldens/llama-tied");
    let Some((mut model, _dir)) = open(&folder, OnnxStyle::Qdq, Floats::F16) else { return };
    let want = expected(&folder);
    let mut got = Vec::new();
    model.sequence().forward(&ids(&want["prompt"]["ids"]), usize::MAX, &mut got).unwrap();
    let difference = worst(&got, &flat(&want["prompt"]["logits"]));
    assert!(difference > 0.0 && difference < 0.02, "{difference}");
}

#[test]
fn what_cannot_be_run_is_named() {
    let folder = testdata().join("goldens/llama-bias");
    let missing = OrtModel::open(&folder, options()).err().unwrap();
    assert!(missing.to_string().contains("model.onnx"), "{missing}");
    let Some((mut model, dir)) = open(&folder, OnnxStyle::Genai, Floats::F32) else { return };
    let (v, context) = (model.vocab_size(), model.context_length());
    let mut sequence = model.sequence();
    let mut logits = Vec::new();
    assert!(matches!(sequence.forward(&[], 1, &mut logits), Err(EngineError::EmptyPrompt)));
    assert!(matches!(sequence.forward(&[v as u32], 1, &mut logits), Err(EngineError::TokenId { .. })));
    let long = vec![1; context + 1];
    assert!(matches!(sequence.forward(&long, 1, &mut logits), Err(EngineError::ContextLength { .. })));
    let other = OrtOptions { provider: Provider::CoreMl, ..options() };
    if cfg!(target_os = "linux") {
        let error = OrtModel::open(&dir.path().join("out"), other).err().unwrap();
        assert!(error.to_string().contains("no execution provider `coreml`; it has: cpu"), "{error}");
    }
}
