//! The built-in model against what transformers gives for it in f32 (`testdata/eval/mica.py`).
#![allow(clippy::unwrap_used, missing_docs)]

use edgelm_engine::Model;
use edgelm_eval::{
    EvalError, EvalReport, GenerationLimits, ModelFacts, Progress, ReportPage, WindowOptions, divergence, pairs,
    perplexity, read_text, render_html, tasks,
};
use edgelm_kernels::Cpu;
use edgelm_model::Checkpoint;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

const MICA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../edgelm/assets/mica-5m");
const TASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/eval/mica_tasks.jsonl");
const GOLDEN: &str = include_str!("../../../testdata/eval/mica.json");

fn golden() -> Value {
    serde_json::from_str(GOLDEN).unwrap()
}

fn load(folder: &Path) -> Model {
    let cpu = Arc::new(Cpu::new(None, None).unwrap());
    Model::load(Arc::new(Checkpoint::open(folder).unwrap()), cpu).unwrap()
}

fn mica() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(Path::new(MICA)))
}

/// A copy of the model with the low four bits of every bf16 weight cleared, in a folder that must outlive it.
fn coarse() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(MICA).join(file), folder.path().join(file)).unwrap();
    }
    let mut bytes = fs::read(Path::new(MICA).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for low in bytes[8 + header..].iter_mut().step_by(2) {
        *low &= 0xf0;
    }
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let model = load(folder.path());
    (folder, model)
}

/// Every message and answer of the task lines, each followed by a line break.
fn text() -> String {
    let mut text = String::new();
    for line in fs::read_to_string(TASKS).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let contents = line["messages"].as_array().unwrap().iter().map(|message| &message["content"]);
        for part in contents.chain([&line["answer"]]) {
            text.push_str(part.as_str().unwrap());
            text.push('\n');
        }
    }
    text
}

fn assert_close(got: f64, golden: &Value, key: &str, relative: f64) {
    let want = golden[key].as_f64().unwrap();
    assert!((got / want - 1.0).abs() < relative, "{key}: {got}, expected {want}");
}

#[test]
fn perplexity_of_a_text() {
    let golden = &golden()["text"];
    let options = WindowOptions { context: 128, ..WindowOptions::default() };
    let mut windows = 0;
    let got = perplexity(mica(), &text(), &options, &mut |progress| {
        let Progress::Window { done, total, .. } = progress else { panic!("{progress:?}") };
        windows += 1;
        assert_eq!((done, total), (windows, 13));
    })
    .unwrap();
    assert_close(got.perplexity, golden, "perplexity", 1e-4);
    assert_eq!(got.tokens_scored as u64, golden["tokens_scored"].as_u64().unwrap());
    assert_eq!((got.windows, got.first_token), (13, 0));
    let first = perplexity(mica(), &text(), &WindowOptions { windows: Some(1), ..options }, &mut |_| ()).unwrap();
    assert_eq!(first.tokens_scored, 128);
}

#[test]
fn divergence_from_the_parent() {
    let golden = &golden()["text"];
    let options = WindowOptions { context: 128, ..WindowOptions::default() };
    let (_folder, coarse) = coarse();
    let got = divergence(mica(), &coarse, &text(), &options, &mut |_| ()).unwrap();
    assert_close(got.kl.mean, golden, "kl_divergence", 1e-3);
    assert_close(got.kl.standard_error, golden, "kl_standard_error", 1e-2);
    assert_close(got.kl.max, golden, "kl_max", 1e-2);
    assert_close(got.parent.perplexity, golden, "perplexity", 1e-4);
    assert_close(got.model.perplexity, golden, "coarse_perplexity", 1e-4);
    // Two positions of room for ties.
    assert_close(got.top1_agreement, golden, "top1_agreement", 2.0 / 1664.0);

    let alone = perplexity(mica(), &text(), &options, &mut |_| ()).unwrap();
    assert_eq!(got.parent, alone);
    let itself = divergence(mica(), mica(), &text(), &options, &mut |_| ()).unwrap();
    assert!(itself.kl.mean.abs() < 1e-6 && itself.kl.max < 1e-5);
    assert_eq!(itself.top1_agreement, 1.0);
    assert_eq!(itself.model, alone);
}

#[test]
fn figures_do_not_depend_on_the_number_of_threads() {
    let options = WindowOptions { context: 64, windows: Some(2), ..WindowOptions::default() };
    let [one, three] = [1, 3].map(|threads| {
        let cpu = Arc::new(Cpu::new(Some(threads), None).unwrap());
        let model = Model::load(Arc::new(Checkpoint::open(Path::new(MICA)).unwrap()), cpu).unwrap();
        perplexity(&model, &text(), &options, &mut |_| ()).unwrap()
    });
    assert_eq!(one, three);
}

#[test]
fn task_answers_and_text_metrics() {
    let golden = golden();
    let limits = GenerationLimits::default();
    let got = tasks(mica(), Path::new(TASKS), &limits, &mut |_| ()).unwrap();
    let outputs = golden["outputs"].as_array().unwrap();
    assert_eq!(got.results.len(), outputs.len());
    for (result, golden) in got.results.iter().zip(outputs) {
        assert_eq!(result.output, golden["text"].as_str().unwrap(), "line {}", result.line);
        assert_eq!(result.is_correct, golden["correct"].as_bool().unwrap(), "line {}", result.line);
    }
    assert_eq!(got.tasks.len(), 5);
    assert!(got.tasks.values().all(|score| score.total == 4));

    let one = GenerationLimits { lines: Some(1), ..limits.clone() };
    let first = tasks(mica(), Path::new(TASKS), &one, &mut |_| ()).unwrap();
    assert_eq!(first.results.iter().map(|result| result.line).collect::<Vec<_>>(), [1, 5, 9, 13, 17]);

    let texts = pairs(Some(mica()), Path::new(TASKS), &limits, &mut |_| ()).unwrap();
    assert!((texts.rouge_l - golden["rouge_l"].as_f64().unwrap()).abs() < 1e-9);
    assert!((texts.bleu.score - golden["bleu4"].as_f64().unwrap()).abs() < 1e-9);

    let mut report = EvalReport::default();
    report.add_tasks(&got);
    report.add_pairs(&texts);
    let facts = ModelFacts::of(mica());
    let page = ReportPage { model: &facts, parent: None, report: &report, tasks: Some(&got), pairs: Some(&texts) };
    assert!(render_html(&page).contains("LlamaForCausalLM"));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let run = |text: &str, options| perplexity(mica(), text, &options, &mut |_| ());
    let error = run("too short", WindowOptions::default()).unwrap_err();
    assert!(matches!(error, EvalError::TooShort { context: 1024, .. }), "{error}");
    let error = run("text", WindowOptions { context: 4096, ..WindowOptions::default() }).unwrap_err();
    assert!(matches!(error, EvalError::Option { option: "context", .. }), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.jsonl");
    let content = "word ".repeat(3000);
    let line = serde_json::json!({"task": "t", "messages": [{"role": "user", "content": content}], "answer": "a"});
    fs::write(&path, format!("\n{line}\n")).unwrap();
    let error = tasks(mica(), &path, &GenerationLimits::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, EvalError::LineEngine { line: 2, .. }), "{error}");
}

#[test]
fn first_windows_of_wikitext2() {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let shared = std::env::var_os("EDGELM_SHARED").map_or(beside, PathBuf::from);
    let path = shared.join("data/wikitext2-test.txt");
    if !path.exists() {
        println!("skipped: `{}` is not there", path.display());
        return;
    }
    let golden = &golden()["wikitext2_test_2_windows"];
    let options = WindowOptions { windows: Some(2), ..WindowOptions::default() };
    let (_folder, coarse) = coarse();
    let got = divergence(mica(), &coarse, &read_text(&path).unwrap(), &options, &mut |_| ()).unwrap();
    assert_close(got.parent.perplexity, golden, "perplexity", 1e-4);
    assert_close(got.model.perplexity, golden, "coarse_perplexity", 1e-4);
    assert_close(got.kl.mean, golden, "kl_divergence", 1e-3);
}
