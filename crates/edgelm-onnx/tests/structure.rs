//! What is written is a graph: every input is made once and before it is used, and every weight has its bytes.
#![allow(clippy::unwrap_used)]

use edgelm_format::onnx::{ALIGNMENT, DataType, Model, Tensor, decode_model};
use edgelm_model::Checkpoint;
use edgelm_onnx::{Floats, OnnxError, OnnxOptions, OnnxStyle, export, unsupported};
use std::{
    collections::HashSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn folders() -> Vec<PathBuf> {
    let all = ["goldens", "goldens/quantized", "compressed-tensors", "bitsandbytes"];
    let entries = all.into_iter().flat_map(|name| std::fs::read_dir(testdata().join(name)).unwrap());
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("config.json").exists() && path.join("expected.json").exists());
    folders.sort();
    folders
}

fn options(style: OnnxStyle) -> OnnxOptions {
    OnnxOptions { style, floats: Floats::F32, int8_inputs: false, context: None }
}

fn entry<'a>(tensor: &'a Tensor, key: &str) -> &'a str {
    &tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value
}

fn check(model: &Model, data_bytes: u64, what: &str) {
    let graph = model.graph.as_ref().unwrap();
    let mut known: HashSet<&str> = HashSet::new();
    for tensor in &graph.initializer {
        assert!(known.insert(&tensor.name), "{what}: `{}` twice", tensor.name);
        let bits = DataType::try_from(tensor.data_type).unwrap().bits();
        let bytes = (tensor.dims.iter().product::<i64>() as usize * bits).div_ceil(8);
        match &tensor.raw_data {
            Some(raw) => assert_eq!(raw.len(), bytes, "{what}: `{}`", tensor.name),
            None => {
                let number = |key| entry(tensor, key).parse::<u64>().unwrap();
                assert_eq!(entry(tensor, "location"), "model.onnx.data");
                assert_eq!((number("length"), number("offset") % ALIGNMENT), (bytes as u64, 0), "{what}");
                assert!(number("offset") + number("length") <= data_bytes, "{what}: `{}`", tensor.name);
            }
        }
    }
    for input in &graph.input {
        let shape = input.kind.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
        let is_stated = |dim: &edgelm_format::onnx::Dimension| dim.dim_value.is_some() || dim.dim_param.is_some();
        assert!(shape.dim.iter().all(is_stated) && shape.dim.len() >= 2, "{what}: `{}`", input.name);
        assert!(known.insert(&input.name), "{what}: `{}` twice", input.name);
    }
    let mut names = HashSet::new();
    for node in &graph.node {
        assert!(names.insert(&node.name), "{what}: node `{}` twice", node.name);
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(input.as_str()), "{what}: `{}` reads `{input}` before it is made", node.name);
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            assert!(known.insert(output), "{what}: `{output}` twice");
        }
    }
    let used: HashSet<&String> = graph.node.iter().flat_map(|node| &node.input).collect();
    for tensor in &graph.initializer {
        assert!(used.contains(&tensor.name), "{what}: nobody reads `{}`", tensor.name);
    }
    for output in &graph.output {
        assert!(known.contains(output.name.as_str()), "{what}: nobody makes `{}`", output.name);
    }
}

#[test]
fn graphs_are_in_order_and_complete() {
    let (mut written, mut refused) = (0, 0);
    for folder in folders() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for style in [OnnxStyle::Genai, OnnxStyle::Qdq] {
            let what = format!("{} {style}", folder.display());
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            let result = export(&checkpoint, options(style), &out, &mut |_, _| ControlFlow::Continue(()));
            if unsupported(checkpoint.config(), style).is_some() {
                assert!(matches!(result, Err(OnnxError::Unsupported { .. })), "{what}");
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{what}");
                refused += 1;
                continue;
            }
            let report = result.unwrap();
            let path = out.join("model.onnx");
            let model = decode_model(&std::fs::read(&path).unwrap(), &path).unwrap();
            check(&model, std::fs::metadata(out.join("model.onnx.data")).unwrap().len(), &what);
            let graph = model.graph.as_ref().unwrap();
            let is_standard = graph.node.iter().all(|node| node.domain.is_empty());
            assert_eq!(is_standard, style == OnnxStyle::Qdq, "{what}");
            assert_eq!(out.join("genai_config.json").exists(), style == OnnxStyle::Genai, "{what}");
            let mut found: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
            found.sort();
            assert_eq!(report.files, found, "{what}");
            written += 1;
        }
    }
    assert!(written > 100 && refused > 10, "{written} {refused}");
}

#[test]
fn codes_are_kept_and_floats_are_reported() {
    let open = |name: &str| Checkpoint::open(&testdata().join(name)).unwrap();
    let kinds = |name: &str, style| {
        let dir = tempfile::tempdir().unwrap();
        export(&open(name), options(style), &dir.path().join("out"), &mut |_, _| ControlFlow::Continue(()))
            .unwrap()
            .kinds
    };
    for style in [OnnxStyle::Genai, OnnxStyle::Qdq] {
        for kind in kinds("compressed-tensors/w8a8-static", style).iter().filter(|kind| kind.from == "Q8_0") {
            assert_eq!((kind.to.as_str(), &kind.reason), ("int8, rows", &None), "{kind:?}");
        }
        let floats = kinds("bitsandbytes/nf4", style);
        let floats: Vec<_> = floats.iter().filter(|kind| kind.from == "NF4").collect();
        assert!(!floats.is_empty());
        for kind in floats {
            assert!(kind.to == "f32" && kind.reason.as_deref().unwrap().contains("whole numbers"), "{kind:?}");
        }
    }
}

#[test]
fn nothing_is_left_of_what_was_interrupted_or_in_the_way() {
    let checkpoint = Checkpoint::open(&testdata().join("goldens/llama-bias")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let stopped = export(&checkpoint, options(OnnxStyle::Qdq), &out, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(OnnxError::Cancelled)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "x").unwrap();
    let error = export(&checkpoint, options(OnnxStyle::Qdq), &out, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("not an empty folder"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
