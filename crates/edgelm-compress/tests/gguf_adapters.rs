//! LoRA adapters as GGUF files, laid out as llama.cpp's converter lays them out, beside a base from a folder and from a GGUF
//! file: the logits of the PEFT folder that they were made of.
//!
//! The committed adapter, less the head it replaces, for which such files have no form; with the shared goldens at hand
//! (EDGELM_SHARED, or `shared/` beside the repository), those of Llama and Qwen2, against the logits of peft.
#![allow(clippy::unwrap_used)]

use edgelm_compress::export;
use edgelm_engine::{Engine, LoadedAdapter, Step, Want, Workspace};
use edgelm_format::{
    Source,
    gguf::{Metadata, Value, Writer},
    safetensors::SafeTensors,
};
use edgelm_kernels::{Cpu, KvDtype};
use edgelm_model::{Adapter, Checkpoint};
use edgelm_tensor::DType;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

const TOLERANCE: f32 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `model.layers.3.self_attn.q_proj` as llama.cpp has it.
fn gguf_name(module: &str) -> String {
    let (layer, rest) = module.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let role = match rest {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{layer}.{role}.weight")
}

/// Rows as `LlamaModel.permute` of the converter leaves them: reshape(heads, 2, E/2).swapaxes(1, 2).
fn permuted(rows: Vec<Vec<u8>>, heads: usize) -> Vec<Vec<u8>> {
    let width = rows.len() / heads;
    let source = |row: usize| {
        let (head, at) = (row / width, row % width);
        head * width + at / 2 + (at % 2) * (width / 2)
    };
    (0..rows.len()).map(|row| rows[source(row)].clone()).collect()
}

/// What `convert_lora_to_gguf.py` makes of a PEFT folder.
fn convert(folder: &Path, base: &Path, to: &Path) {
    let (adapter, config) = (json(&folder.join("adapter_config.json")), json(&base.join("config.json")));
    let arch = config["model_type"].as_str().unwrap();
    let text = |value: &str| Value::String(value.to_owned());
    let metadata: Metadata = [
        ("general.architecture", text(arch)),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(adapter["lora_alpha"].as_f64().unwrap() as f32)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    let weights =
        SafeTensors::from_sources(vec![Source::open(&folder.join("adapter_model.safetensors")).unwrap()]).unwrap();
    let mut tensors = Vec::new();
    for name in weights.names() {
        let inner = name.strip_prefix("base_model.model.").unwrap();
        let parts = [(".lora_A.weight", ".lora_a"), (".lora_B.weight", ".lora_b")];
        let Some((module, end)) = parts.iter().find_map(|(was, is)| Some((inner.strip_suffix(was)?, is))) else {
            assert!(inner.contains("lm_head"), "{name}");
            continue;
        };
        let view = weights.get(name).unwrap().unwrap();
        assert_eq!(view.dtype, DType::F32);
        let mut rows: Vec<Vec<u8>> = view.bytes.chunks_exact(view.shape[1] * 4).map(<[u8]>::to_vec).collect();
        let heads = match module.rsplit('.').next().unwrap() {
            "q_proj" => config["num_attention_heads"].as_u64(),
            "k_proj" => config["num_key_value_heads"].as_u64(),
            _ => None,
        };
        if let (Some(heads), "llama", &".lora_b") = (heads, arch, end) {
            rows = permuted(rows, heads as usize);
        }
        tensors.push((format!("{}{end}", gguf_name(module)), view.shape.to_vec(), rows.concat()));
    }
    assert!(!tensors.is_empty());
    let declared: Vec<_> = tensors.iter().map(|(name, shape, _)| (name.clone(), DType::F32, shape.clone())).collect();
    let mut writer = Writer::create(to, &metadata, &declared).unwrap();
    tensors.iter().for_each(|(.., bytes)| writer.write(bytes).unwrap());
    writer.finish().unwrap();
}

fn logits(engine: &Engine, adapter: Option<Adapter>, tokens: &[u32]) -> Vec<f32> {
    let adapter = adapter.map(|adapter| Arc::new(LoadedAdapter::load(engine, &[adapter]).unwrap()));
    let mut sequence = engine.adapted_sequence(KvDtype::F32, adapter);
    let mut workspace = Workspace::default();
    engine.forward(&mut [Step { sequence: &mut sequence, tokens, want: Want::All }], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn engine(path: &Path) -> Engine {
    Engine::load(Arc::new(Checkpoint::open(path).unwrap()), Arc::new(Cpu::new(Some(1), None).unwrap())).unwrap()
}

fn check(folder: &Path, base: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let (file, adapter) = (scratch.path().join("base.gguf"), scratch.path().join("adapter.gguf"));
    convert(folder, base, &adapter);
    export(&Checkpoint::open(base).unwrap(), &[], &file, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let expected = json(&folder.join("expected.json"));
    let ids = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
    let prompt: Vec<u32> = expected["prompt"]["ids"].as_array().unwrap().iter().map(ids).collect();

    let from_folder = engine(base);
    let mut peft = Adapter::open(folder, from_folder.checkpoint()).unwrap();
    let is_whole = peft.replaced.is_empty();
    peft.replaced.clear();
    let (plain, want) = (logits(&from_folder, None, &prompt), logits(&from_folder, Some(peft), &prompt));
    assert!(worst(&plain, &want) > 10.0 * TOLERANCE, "the adapter changes nothing");
    for engine in [from_folder, engine(&file)] {
        let read = Adapter::open(&adapter, engine.checkpoint()).unwrap();
        let got = logits(&engine, Some(read), &prompt);
        let error = worst(&got, &want);
        assert!(error < TOLERANCE, "{}: logits differ by {error}", folder.display());
        if is_whole {
            let rows = expected["prompt"]["logits"].as_array().unwrap().iter();
            let values = rows.flat_map(|row| row.as_array().unwrap());
            let peft: Vec<f32> = values.map(|x| x.as_f64().unwrap() as f32).collect();
            let error = worst(&got, &peft);
            assert!(error < TOLERANCE, "{}: logits differ from peft's by {error}", folder.display());
        }
    }
}

#[test]
fn the_committed_adapter_says_the_same_as_a_gguf_file() {
    check(&root().join("testdata/adapters/lora-llama-head"), &root().join("testdata/goldens/llama-bias"));
}

#[test]
fn shared_adapters_say_the_same_as_gguf_files() {
    let shared = std::env::var_os("EDGELM_SHARED").map_or(root().join("../shared"), PathBuf::from).join("goldens");
    for name in ["lora-llama", "lora-qwen2"] {
        let folder = shared.join("adapters").join(name);
        if !folder.exists() {
            println!("skipped: no shared adapter {name}");
            continue;
        }
        let base = json(&folder.join("expected.json"))["base"].as_str().unwrap().to_owned();
        check(&folder, &shared.join(base));
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() {
    let scratch = tempfile::tempdir().unwrap();
    let model = Checkpoint::open(&root().join("testdata/goldens/llama-bias")).unwrap();
    let hidden = model.config().hidden_size;
    let text = |value: &str| Value::String(value.to_owned());
    let good = [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")];
    let message = |keys: &[(&str, &str)], tensors: &[(&str, Vec<usize>)]| {
        let file = scratch.path().join("adapter.gguf");
        let metadata: Metadata = keys.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
        let declared: Vec<_> =
            tensors.iter().map(|(name, shape)| ((*name).to_owned(), DType::F32, shape.clone())).collect();
        let mut writer = Writer::create(&file, &metadata, &declared).unwrap();
        for (_, shape) in tensors {
            writer.write(&vec![0; shape.iter().product::<usize>() * 4]).unwrap();
        }
        writer.finish().unwrap();
        Adapter::open(&file, &model).unwrap_err().to_string()
    };
    let (a, b) = ("blk.0.attn_output.weight.lora_a", "blk.0.attn_output.weight.lora_b");
    let pair = [(a, vec![2, hidden]), (b, vec![hidden, 2])];
    let cases = [
        (message(&good[..2], &pair), "key `adapter.type` must be `lora`"),
        (message(&[("general.architecture", "qwen2"), good[1], good[2]], &pair), "adapter for architecture `qwen2`"),
        (message(&good, &pair[..1]), "tensor `blk.0.attn_output.weight.lora_b` is missing"),
        (message(&good, &pair[1..]), "unexpected tensor `blk.0.attn_output.weight.lora_b`"),
        (message(&good, &[(a, vec![2, hidden + 1]), (b, vec![hidden, 2])]), "blk.0.attn_output.weight.lora_a"),
        (message(&good, &[("blk.99.attn_q.weight.lora_a", vec![2, hidden])]), "`blk.99.attn_q.weight`"),
    ];
    for (message, want) in cases {
        assert!(message.contains(want), "{message}, not {want}");
    }
}
