//! PEFT adapters against the logits and greedy tokens of peft (f32).
//!
//! Every folder of `testdata/adapters` is run; with the shared goldens at hand (EDGELM_SHARED, or `shared/` beside the
//! repository), so is every adapter there.
#![allow(clippy::unwrap_used)]

use edgelm_engine::{Engine, GenerateOptions, LoadedAdapter, Model, Step, Want, Workspace};
use edgelm_kernels::{Cpu, KvDtype};
use edgelm_model::{Adapter, Checkpoint};
use serde_json::Value;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Of the goldens' README: f32 arithmetic, largest difference of any logit.
const TOLERANCE: f32 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    value.as_array().unwrap().iter().flat_map(row).collect()
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Adapters below `dir` with the folders of their base models, which lie in `bases`.
fn cases(dir: &Path, bases: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut cases = Vec::new();
    for folder in entries.map(|entry| entry.unwrap().path()) {
        let Ok(text) = std::fs::read(folder.join("expected.json")) else { continue };
        let expected: Value = serde_json::from_slice(&text).unwrap();
        let base = bases.join(expected["base"].as_str().unwrap());
        cases.push((folder, base));
    }
    cases.sort();
    cases
}

fn model(base: &Path) -> Model {
    Model::load(Arc::new(Checkpoint::open(base).unwrap()), Arc::new(Cpu::new(None, None).unwrap())).unwrap()
}

fn load(engine: &Engine, folder: &Path) -> Arc<LoadedAdapter> {
    let adapter = Adapter::open(folder, engine.checkpoint()).unwrap();
    Arc::new(LoadedAdapter::load(engine, &[adapter]).unwrap())
}

fn check(folder: &Path, base: &Path) {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let model = model(base);
    let engine = model.engine();
    let adapter = load(engine, folder);
    let prompt = ids(&expected["prompt"]["ids"]);
    let want = floats(&expected["prompt"]["logits"]);
    let mut workspace = Workspace::default();

    // Beside a sequence that does not go through it, at once and token by token.
    let mut adapted = engine.adapted_sequence(KvDtype::F32, Some(Arc::clone(&adapter)));
    let mut plain = engine.sequence(KvDtype::F32);
    let mut batch = [
        Step { sequence: &mut plain, tokens: &prompt, want: Want::All },
        Step { sequence: &mut adapted, tokens: &prompt, want: Want::All },
    ];
    engine.forward(&mut batch, &mut workspace).unwrap();
    let (without, with) = workspace.logits().split_at(want.len());
    let error = worst(with, &want);
    assert!(error < TOLERANCE, "{name}: prompt logits differ by {error}");
    assert!(worst(without, &want) > 10.0 * TOLERANCE, "{name}: the adapter changes nothing");
    let at_once = with.to_vec();
    let mut adapted = engine.adapted_sequence(KvDtype::F32, Some(Arc::clone(&adapter)));
    let mut stepwise = Vec::new();
    for token in &prompt {
        let step = Step { sequence: &mut adapted, tokens: std::slice::from_ref(token), want: Want::All };
        engine.forward(&mut [step], &mut workspace).unwrap();
        stepwise.extend_from_slice(workspace.logits());
    }
    assert_eq!(stepwise, at_once, "{name}: steps give other bits");

    let greedy = ids(&expected["greedy"]["ids"]);
    let options = GenerateOptions {
        max_tokens: Some(greedy.len()),
        ignore_eos: true,
        adapter: Some(adapter),
        ..GenerateOptions::default()
    };
    let generation = model.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.tokens, greedy, "{name}: greedy tokens");
}

#[test]
fn committed_adapters_pass() {
    let cases = cases(&root().join("testdata/adapters"), &root().join("testdata/goldens"));
    assert!(!cases.is_empty(), "adapters are missing from testdata");
    cases.iter().for_each(|(folder, base)| check(folder, base));
}

#[test]
fn shared_adapters_pass() {
    let shared = std::env::var_os("EDGELM_SHARED").map_or(root().join("../shared"), PathBuf::from);
    let cases = cases(&shared.join("goldens/adapters"), &shared.join("goldens"));
    if cases.is_empty() {
        println!("skipped: no shared adapters in {}", shared.display());
    }
    cases.iter().for_each(|(folder, base)| check(folder, base));
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() {
    let base = root().join("testdata/goldens/llama-bias");
    let folder = root().join("testdata/adapters/lora-llama-head");
    let model = model(&base);
    let copy = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let message = |config: &str, weights: &[u8]| {
        std::fs::write(copy.path().join("adapter_config.json"), config).unwrap();
        std::fs::write(copy.path().join("adapter_model.safetensors"), weights).unwrap();
        Adapter::open(copy.path(), model.checkpoint()).unwrap_err().to_string()
    };
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let cases = [
        (config.replace("\"LORA\"", "\"IA3\""), "key `peft_type` is `\"IA3\"`"),
        (
            config.replace("\"bias\": \"none\"", "\"bias\": \"all\""),
            "key `bias` is `\"all\"`: only `none` is supported",
        ),
        (config.replace("{\n", "{\n  \"use_something_new\": true,\n"), "unknown key `use_something_new` (`true`)"),
    ];
    for (config, want) in cases {
        let message = message(&config, &weights);
        assert!(message.contains(want), "{message}");
    }
    let (from, to) = (b"layers.0.self_attn.o_proj.lora_A", b"layers.0.self_attn.z_proj.lora_A");
    let at = weights.windows(from.len()).position(|window| window == from).unwrap();
    let mut renamed = weights.clone();
    renamed[at..at + to.len()].copy_from_slice(to);
    let text = message(&config, &renamed);
    assert!(text.contains("`model.layers.0.self_attn.o_proj` has no A"), "{text}");
    let text = message(&config, &weights[..weights.len() / 2]);
    assert!(text.contains("adapter_model.safetensors"), "{text}");
}
