//! Opening folders and GGUF files: what is there, what is refused and how, and the way to GGUF and back.

#![allow(clippy::unwrap_used)]

use edgelm_format::{gguf, safetensors};
use edgelm_model::{Checkpoint, LayerTensor, ModelConfig, RopePairs, RopeScaling, StorageKind, TensorId, arch::ARCHS};
use edgelm_tensor::DType;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

type Tensor = (String, Vec<usize>, Vec<f32>);

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Distinct values, so that a row in the wrong place shows.
fn values(shape: &[usize], seed: usize) -> Vec<f32> {
    (0..shape.iter().product()).map(|index| (seed * 10_000 + index) as f32).collect()
}

fn tensors_of(config: &ModelConfig) -> Vec<Tensor> {
    let tensor = |(seed, id): (usize, TensorId)| {
        let shape = config.tensor_shape(id).unwrap();
        (config.arch.hf_tensor_name(id), shape.clone(), values(&shape, seed))
    };
    config.tensor_ids().into_iter().enumerate().map(tensor).collect()
}

/// Writes a folder with the tensors that `config` implies after `edit`.
fn write_folder(folder: &Path, config: &Value, edit: impl Fn(&mut Vec<Tensor>)) {
    let text = config.to_string();
    std::fs::write(folder.join("config.json"), &text).unwrap();
    let mut tensors = tensors_of(&ModelConfig::from_hf(text.as_bytes(), Path::new("config.json")).unwrap());
    edit(&mut tensors);
    let list: Vec<_> = tensors.iter().map(|(name, shape, _)| (name.clone(), DType::F32, shape.clone())).collect();
    let path = folder.join("model.safetensors");
    let mut writer = safetensors::Writer::create(&path, &list, &Default::default()).unwrap();
    for (_, _, values) in &tensors {
        writer.write(&bytes(values)).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a checkpoint as GGUF in f32, rows where GGUF wants them.
fn write_gguf(checkpoint: &Checkpoint, path: &Path, metadata: &gguf::Metadata) {
    let config = checkpoint.config();
    let extra = checkpoint.gguf_extra_tensors();
    let mut list: Vec<_> = extra.iter().map(|(name, shape, _)| (name.clone(), DType::F32, shape.clone())).collect();
    for &id in checkpoint.tensor_ids() {
        list.push((config.arch.gguf_tensor_name(id), DType::F32, config.tensor_shape(id).unwrap()));
    }
    let mut writer = gguf::Writer::create(path, metadata, &list).unwrap();
    for (_, _, values) in &extra {
        writer.write(&bytes(values)).unwrap();
    }
    for &id in checkpoint.tensor_ids() {
        let view = checkpoint.tensor(id).unwrap();
        assert_eq!(view.dtype, DType::F32);
        let rows = view.shape[0];
        let row_bytes = view.bytes.len() / rows;
        for row in 0..rows {
            let source = config.gguf_row_source(id, row);
            writer.write(&view.bytes[source * row_bytes..][..row_bytes]).unwrap();
        }
    }
    writer.finish().unwrap();
}

fn message(result: Result<Checkpoint, edgelm_model::ModelError>, root: &Path) -> String {
    let text = result.err().expect("an error").to_string();
    text.replace(&root.display().to_string(), "ROOT")
}

fn small() -> Value {
    json!({"model_type": "llama", "hidden_size": 12, "intermediate_size": 10, "vocab_size": 11, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": 2})
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
}

#[test]
fn goldens_open() {
    for entry in std::fs::read_dir(testdata("goldens")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.name(), folder.file_name().unwrap().to_str().unwrap());
        assert_eq!(checkpoint.storage(), StorageKind::Safetensors);
        let mut parameters = 0;
        for &id in checkpoint.tensor_ids() {
            let view = checkpoint.tensor(id).unwrap();
            assert_eq!(Some(view.shape.to_vec()), checkpoint.config().tensor_shape(id));
            parameters += view.elements() as u64;
            checkpoint.release(id);
        }
        assert_eq!(checkpoint.parameters(), parameters);
        assert!(checkpoint.file_bytes() > 2 * parameters);
        let error = checkpoint.tokenizer().err().unwrap().to_string();
        assert!(error.contains("no `tokenizer.json` in"), "{error}");
    }
}

#[test]
fn the_demo_model_opens_embedded_and_from_disk() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edgelm/assets/mica-5m");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.config().eos_token_ids, [0, 2]);
    assert_eq!(checkpoint.config().bos_token_id, Some(0));
    assert_eq!(checkpoint.generation().do_sample, Some(false));
    assert_eq!(checkpoint.generation().max_new_tokens, Some(128));
    assert!(checkpoint.config().tie_word_embeddings && !checkpoint.has(TensorId::Output));

    static FILES: &[(&str, &[u8])] = &[
        ("config.json", include_bytes!("../../edgelm/assets/mica-5m/config.json")),
        ("tokenizer_config.json", include_bytes!("../../edgelm/assets/mica-5m/tokenizer_config.json")),
        ("tokenizer.json", include_bytes!("../../edgelm/assets/mica-5m/tokenizer.json")),
        ("model.safetensors", include_bytes!("../../edgelm/assets/mica-5m/model.safetensors")),
    ];
    let embedded = Checkpoint::open_embedded("mica-5m", FILES).unwrap();
    // The end of text is named by generation_config.json alone; the tokenizer's own end is there without it.
    assert_eq!(embedded.config().eos_token_ids, [2]);
    assert_eq!(embedded.name(), "mica-5m");
    let id = TensorId::Layer(3, LayerTensor::Down);
    assert_eq!(embedded.tensor(id).unwrap().bytes, checkpoint.tensor(id).unwrap().bytes);
    assert!(embedded.tensor(TensorId::Output).is_err());
}

#[test]
fn the_demo_model_keeps_its_text_in_gguf() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edgelm/assets/mica-5m");
    let before = Checkpoint::open(&folder).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mica.gguf");
    let list: Vec<_> = before
        .tensor_ids()
        .iter()
        .map(|&id| (before.config().arch.gguf_tensor_name(id), DType::BF16, before.config().tensor_shape(id).unwrap()))
        .collect();
    let mut writer = gguf::Writer::create(&path, &before.gguf_metadata().unwrap(), &list).unwrap();
    for &id in before.tensor_ids() {
        writer.write(&before.tensor(id).unwrap().bytes).unwrap();
    }
    writer.finish().unwrap();
    let after = Checkpoint::open(&path).unwrap();
    assert_eq!(after.config().eos_token_ids, [0, 2]);
    assert_eq!(after.config().bos_token_id, Some(0));
    let ids = |checkpoint: &Checkpoint| checkpoint.tokenizer().unwrap().encode_prompt("pump 3: 41.5 °C\n").unwrap();
    assert_eq!(ids(&before), ids(&after));
    let chat = |checkpoint: &Checkpoint| {
        let messages = [json!({"role": "user", "content": "hello"})];
        checkpoint.chat_template().unwrap().unwrap().render(&messages, true, &Default::default()).unwrap()
    };
    assert_eq!(chat(&before), chat(&after));
}

#[test]
fn eos_ids_come_from_every_file() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &small(), |_| {});
    let eos = || Checkpoint::open(folder.path()).unwrap().config().eos_token_ids.clone();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    assert_eq!(eos(), [2]);
    write("generation_config.json", json!({"eos_token_id": [7, 1], "temperature": 0.5, "top_k": 0}));
    assert_eq!(eos(), [1, 2, 7]);
    let added = json!({"9": {"content": "<end>"}, "10": {"content": "<stop>"}});
    write("tokenizer_config.json", json!({"eos_token": "<end>", "added_tokens_decoder": added}));
    assert_eq!(eos(), [1, 2, 7, 9]);
    write("tokenizer_config.json", json!({"eos_token": {"content": "<end>"}}));
    write("tokenizer.json", json!({"added_tokens": [{"id": 8, "content": "<end>", "special": true}], "model": {}}));
    assert_eq!(eos(), [1, 2, 7, 8]);
    write("generation_config.json", json!({"top_p": "high"}));
    let error = message(Checkpoint::open(folder.path()), folder.path());
    assert_eq!(error, "`ROOT/generation_config.json`: key `top_p` is `\"high\"`: must be a finite number");
}

#[test]
fn buffers_and_a_tied_head_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small();
    config["tie_word_embeddings"] = json!(true);
    write_folder(folder.path(), &config, |tensors| {
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![3], vec![0.0; 3]));
        tensors.push(("lm_head.weight".to_owned(), vec![11, 12], vec![0.0; 132]));
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(!checkpoint.has(TensorId::Output) && checkpoint.tensor(TensorId::Output).is_err());
}

#[test]
fn wrong_tensors_are_named() {
    let q = "model.layers.1.self_attn.q_proj.weight";
    type Edit<'a> = &'a dyn Fn(&mut Vec<Tensor>);
    let cases: [(Edit<'_>, &str); 6] = [
        (
            &|tensors| tensors.retain(|tensor| tensor.0 != q),
            "`ROOT`: tensor `model.layers.1.self_attn.q_proj.weight` is missing",
        ),
        (
            &|tensors| tensors.retain(|tensor| tensor.0 != "lm_head.weight"),
            "`ROOT`: tensor `lm_head.weight` is missing",
        ),
        (
            &|tensors| tensors.push(("model.layers.1.self_attn.q_proj.bias".to_owned(), vec![12], vec![0.0; 12])),
            "`ROOT`: unexpected tensor `model.layers.1.self_attn.q_proj.bias`",
        ),
        (
            &|tensors| tensors.push(("model.layers.2.input_layernorm.weight".to_owned(), vec![1], vec![0.0])),
            "`ROOT`: unexpected tensor `model.layers.2.input_layernorm.weight`",
        ),
        (
            &|tensors| tensors.iter_mut().filter(|tensor| tensor.0 == q).for_each(|tensor| tensor.1 = vec![6, 24]),
            "tensor `model.layers.1.self_attn.q_proj.weight` has shape [6, 24], expected [12, 12]",
        ),
        (
            &|tensors| tensors.iter_mut().filter(|tensor| tensor.0 == q).for_each(|tensor| tensor.1 = vec![144]),
            "tensor `model.layers.1.self_attn.q_proj.weight` has shape [144], expected [12, 12]",
        ),
    ];
    for (edit, want) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &small(), edit);
        assert_eq!(message(Checkpoint::open(folder.path()), folder.path()), want);
    }
}

#[test]
fn missing_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let open = |path: &Path| message(Checkpoint::open(path), root);
    assert_eq!(open(&root.join("none")), "`ROOT/none`: opening failed");
    assert_eq!(open(root), "`ROOT`: no `config.json` here");
    std::fs::write(root.join("m.gguf"), "GG").unwrap();
    assert_eq!(open(root), "`ROOT`: no `config.json` here; to use `m.gguf` give that file");
    assert!(open(&root.join("m.gguf")).starts_with("`ROOT/m.gguf`: "));
    std::fs::write(root.join("readme.txt"), "hello").unwrap();
    assert_eq!(open(&root.join("readme.txt")), "`ROOT/readme.txt`: is neither a GGUF file nor a Hugging Face folder");
    std::fs::write(root.join("config.json"), small().to_string()).unwrap();
    assert_eq!(open(root), "`ROOT`: neither `model.safetensors` nor `model.safetensors.index.json` here");
    std::fs::write(root.join("pytorch_model.bin"), "x").unwrap();
    assert_eq!(open(root), "`ROOT`: no `model.safetensors` here; `pytorch_model.bin` is in a format that is not read");
    assert_eq!(
        open(&root.join("pytorch_model.bin")),
        "`ROOT/pytorch_model.bin`: is not a GGUF file; for a Hugging Face model give the folder that it lies in"
    );
    std::fs::write(root.join("config.json"), "{").unwrap();
    assert!(open(root).starts_with("`ROOT/config.json`: is not valid JSON: "));
}

/// Writes a folder, exports it to GGUF, opens that, and compares everything.
fn round_trip(config: &Value) -> (Checkpoint, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, |_| {});
    let before = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("x.gguf");
    write_gguf(&before, &path, &before.gguf_metadata().unwrap());
    let after = Checkpoint::open(&path).unwrap();
    assert_eq!((after.storage(), after.name()), (StorageKind::Gguf, "x"));
    assert_eq!(before.tensor_ids(), after.tensor_ids());
    assert_eq!(before.parameters(), after.parameters());
    for &id in before.tensor_ids() {
        let (want, got) = (before.tensor(id).unwrap(), after.tensor(id).unwrap());
        assert_eq!(want.shape, got.shape);
        let row_bytes = want.bytes.len() / want.shape[0];
        for row in 0..want.shape[0] {
            let source = after.config().hf_row_source(id, row);
            assert_eq!(
                want.bytes[row * row_bytes..][..row_bytes],
                got.bytes[source * row_bytes..][..row_bytes],
                "{id:?}"
            );
        }
    }
    for len in [1, 100, 10_000] {
        let ((want, factor), (got, other)) =
            (before.config().rope.frequencies(len), after.config().rope.frequencies(len));
        assert!(want.iter().zip(&got).all(|(want, got)| (want / got - 1.0).abs() < 1e-6), "{want:?} {got:?}");
        assert!((factor - other).abs() < 1e-6, "{factor} {other}");
    }
    // What a second export copies is the same again.
    let again = folder.path().join("y.gguf");
    write_gguf(&after, &again, &after.gguf_metadata().unwrap());
    assert_eq!(Checkpoint::open(&again).unwrap().config(), after.config());
    // The folder goes away; the maps stay.
    (before, after)
}

#[test]
fn gguf_and_back() {
    let cases = [
        json!({}),
        json!({"tie_word_embeddings": true, "head_dim": 10}),
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"num_attention_heads": [3, 1], "num_key_value_heads": [3, 1], "intermediate_size": [5, 9], "head_dim": 4}),
        json!({"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
        json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 0.75}}),
        json!({"model_type": "mistral", "sliding_window": 3}),
        json!({"model_type": "mistral", "sliding_window": null}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1}),
        json!({"model_type": "qwen3", "head_dim": 8}),
        json!({"model_type": "qwen3", "attention_bias": true, "rope_scaling": {"type": "yarn", "factor": 4.0,
            "beta_fast": 16, "beta_slow": 2, "truncate": false, "original_max_position_embeddings": 64}}),
    ];
    for keys in cases {
        let mut config = small();
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let (before, after) = round_trip(&config);
        let mut want = before.config().clone();
        want.rope.pairs = want.arch.gguf_rope_pairs;
        if keys["model_type"] == "mistral" && keys["sliding_window"].is_null() {
            want.arch = after.config().arch;
        }
        let mut got = after.config().clone();
        // Scalings are stored in f32; the frequencies have been compared.
        got.rope.scaling = want.rope.scaling.clone();
        assert_eq!(got, want);
    }
}

#[test]
fn scalings_that_become_factors() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let yarn = json!({"type": "yarn", "factor": 4.0, "truncate": false, "original_max_position_embeddings": 64});
    for scaling in [llama3, yarn] {
        let mut config = small();
        config["head_dim"] = json!(22);
        config["rope_scaling"] = scaling;
        let (_, after) = round_trip(&config);
        assert!(matches!(after.config().rope.scaling, RopeScaling::Factors { .. }));
        assert_eq!(after.config().rope.pairs, RopePairs::Interleaved);
        config["model_type"] = json!("qwen2");
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, |_| {});
        let metadata = Checkpoint::open(folder.path()).unwrap().gguf_metadata();
        match config["rope_scaling"].get("truncate") {
            Some(_) => assert!(metadata.is_ok()),
            None => {
                let error = metadata.unwrap_err().to_string();
                assert!(
                    error.starts_with("cannot be written as GGUF: files of architecture `qwen2` cannot hold"),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn what_llama_cpp_does_otherwise_is_said() {
    let notes = |keys: Value| {
        let mut config = small();
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, |_| {});
        let mut notes = Checkpoint::open(folder.path()).unwrap().gguf_notes();
        assert!(notes.pop().unwrap().starts_with("no `tokenizer.json`"));
        notes
    };
    assert_eq!(notes(json!({})), [""; 0]);
    assert_eq!(
        notes(json!({"model_type": "mistral", "sliding_window": 8})),
        ["sliding window 8: llama.cpp ignores it for architecture `llama` and differs from position 8 on"]
    );
    assert_eq!(
        notes(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        ["dynamic rotary scaling: llama.cpp does not know it and differs beyond 2048 positions"]
    );
    assert_eq!(
        notes(json!({"intermediate_size": [3, 4]})),
        ["layers of different widths: llama.cpp does not load them for architecture `llama`"]
    );
    assert_eq!(
        notes(json!({"model_type": "qwen2", "head_dim": 4})),
        ["heads × head size differs from the hidden size: llama.cpp does not load this for `qwen2`"]
    );
}

#[test]
fn gguf_refusals_name_the_key() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &small(), |_| {});
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let good = checkpoint.gguf_metadata().unwrap();
    let path = folder.path().join("x.gguf");
    use gguf::{Array, Value::*};
    let families: BTreeSet<&str> = ARCHS.iter().filter_map(|arch| arch.gguf_name).collect();
    let families = families.into_iter().collect::<Vec<_>>().join(", ");
    let unknown = format!("architecture `mamba` is not supported; supported: {families}");
    let cases = [
        ("general.architecture", Some(String("mamba".to_owned())), unknown.as_str()),
        ("general.architecture", None, "key `general.architecture` is missing"),
        ("general.type", Some(String("adapter".to_owned())), "key `general.type`: the file is not a whole model"),
        ("llama.block_count", None, "key `llama.block_count` is missing"),
        ("llama.block_count", Some(U32(0)), "key `llama.block_count` is `0`: must be a whole number from 1 to 1024"),
        (
            "llama.block_count",
            Some(U64(1 << 40)),
            "key `llama.block_count` is `1099511627776`: must be a whole number from 1 to 1024",
        ),
        ("llama.block_count", Some(U32(3)), "tensor `blk.2.attn_norm.weight` is missing"),
        ("llama.block_count", Some(U32(1)), "unexpected tensor `blk.1.attn_k.weight`"),
        ("llama.embedding_length", Some(U32(24)), "tensor `token_embd.weight` has shape [11, 12], expected [11, 24]"),
        (
            "llama.attention.head_count",
            Some(Array(Array::U32(vec![2, 2, 2]))),
            "key `llama.attention.head_count` is `an array`: must hold 2 whole numbers from 1 to 4096",
        ),
        (
            "llama.attention.value_length",
            Some(U32(4)),
            "key `llama.attention.value_length` is `4`: must equal the key length, 6",
        ),
        (
            "llama.attention.causal",
            Some(Bool(false)),
            "key `llama.attention.causal` is `false`: only true is supported",
        ),
        ("llama.expert_count", Some(U32(8)), "key `llama.expert_used_count` is missing"),
        (
            "llama.leading_dense_block_count",
            Some(U32(1)),
            "key `llama.leading_dense_block_count` is `1`: only 0 is supported",
        ),
        (
            "llama.logit_scale",
            Some(F32(0.5)),
            "unknown key `llama.logit_scale` (`0.5`): it could change what the model computes",
        ),
        (
            "llama.rope.scaling.type",
            Some(String("longrope".to_owned())),
            "key `llama.rope.scaling.type` is `longrope`: this rope type is not supported; supported: none, linear, yarn",
        ),
        (
            "llama.rope.freq_base",
            Some(F32(f32::NAN)),
            "key `llama.rope.freq_base` is `NaN`: must be a finite number above 0",
        ),
        ("llama.attention.layer_norm_rms_epsilon", None, "key `llama.attention.layer_norm_rms_epsilon` is missing"),
    ];
    for (key, value, want) in cases {
        let mut metadata: gguf::Metadata = good.iter().filter(|(name, _)| name != key).cloned().collect();
        metadata.extend(value.map(|value| (key.to_owned(), value)));
        write_gguf(&checkpoint, &path, &metadata);
        let error = message(Checkpoint::open(&path), &path);
        assert_eq!(error.strip_prefix("`ROOT`: ").unwrap_or(&error), want);
    }
    // Harmless, and zero counts.
    let mut metadata = good.clone();
    metadata.push(("llama.expert_count".to_owned(), U32(0)));
    metadata.push(("llama.rope.scaling.finetuned".to_owned(), Bool(false)));
    metadata.push(("quantize.imatrix.file".to_owned(), String("x".to_owned())));
    metadata.push(("general.file_type".to_owned(), U32(0)));
    write_gguf(&checkpoint, &path, &metadata);
    let copied = Checkpoint::open(&path).unwrap().gguf_metadata().unwrap();
    assert!(copied.iter().all(|(key, _)| key != "quantize.imatrix.file" && key != "general.file_type"));
}

#[test]
fn several_eos_ids_survive_gguf() {
    let mut config = small();
    config["eos_token_id"] = json!([5, 3, 9, 4]);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config, |_| {});
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("x.gguf");
    write_gguf(&checkpoint, &path, &checkpoint.gguf_metadata().unwrap());
    assert_eq!(Checkpoint::open(&path).unwrap().config().eos_token_ids, [3, 4, 5]);
    assert!(checkpoint.gguf_notes().iter().any(|note| note.ends_with("left out: [9]")));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]

    #[test]
    fn any_shape_goes_to_gguf_and_back(
        family in 0usize..4, heads in 1usize..6, group in 1usize..4, half in 1usize..9, ffn in 1usize..40,
        hidden in 1usize..40, vocab in 1usize..50, layers in 1usize..4, tied: bool,
    ) {
        let family = ["llama", "mistral", "qwen2", "qwen3"][family];
        let config = json!({"model_type": family, "hidden_size": hidden,
            "num_attention_heads": heads * group, "num_key_value_heads": heads, "head_dim": 2 * half,
            "intermediate_size": ffn, "vocab_size": vocab, "num_hidden_layers": layers, "tie_word_embeddings": tied});
        let (before, after) = round_trip(&config);
        assert_eq!(before.config().layers, after.config().layers);
    }
}
