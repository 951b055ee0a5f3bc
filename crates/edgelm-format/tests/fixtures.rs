//! Files written by independent software; `testdata/format/make.py` says which and how.
#![allow(clippy::unwrap_used)]

use edgelm_format::{
    Source,
    gguf::{Array, GgufFile, Value},
    safetensors::SafeTensors,
};
use edgelm_tensor::DType;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "..", "testdata", "format", name].iter().collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

/// 0, 1, 2 … modulo 251.
fn counted(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn gguf_py_values() {
    let file = GgufFile::open(&fixture("all-values.gguf")).unwrap();
    let expected = [
        ("uint8", Value::U8(200)),
        ("int8", Value::I8(-100)),
        ("uint16", Value::U16(60000)),
        ("int16", Value::I16(-30000)),
        ("uint32", Value::U32(4_000_000_000)),
        ("int32", Value::I32(-2_000_000_000)),
        ("float32", Value::F32(0.5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("héllo".into())),
        ("uint64", Value::U64(1 << 63)),
        ("int64", Value::I64(-(1 << 62))),
        ("float64", Value::F64(0.1)),
        ("strings", Value::Array(Array::String(vec!["a".into(), String::new(), "日本".into()]))),
        ("i32s", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("f32s", Value::Array(Array::F32(vec![0.25, -1.5]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
        ("nested", Value::Array(Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])]))),
    ];
    for (key, value) in expected {
        assert_eq!(file.get_meta(&format!("test.{key}")), Some(&value), "{key}");
    }
    assert_eq!(file.metadata()[0], ("general.architecture".into(), Value::String("llama".into())));
    assert_eq!(file.metadata().len(), 18);
}

#[test]
fn gguf_py_tensors() {
    let file = GgufFile::open(&fixture("all-values.gguf")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["f32", "f16", "bf16", "q8_0", "q4_K", "i32", "iq3_s"]);
    let view = file.get("f32").unwrap().unwrap();
    assert_eq!((view.dtype, view.shape), (DType::F32, &[2, 3][..]));
    assert_eq!(floats(&view.bytes), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let view = file.get("f16").unwrap().unwrap();
    assert_eq!((view.dtype, view.shape, view.bytes.len()), (DType::F16, &[2, 1, 4][..], 16));
    for (name, dtype, shape) in
        [("bf16", DType::BF16, [2, 5]), ("q8_0", DType::Q8_0, [3, 32]), ("q4_K", DType::Q4_K, [1, 256])]
    {
        let view = file.get(name).unwrap().unwrap();
        assert_eq!((view.dtype, view.shape), (dtype, &shape[..]), "{name}");
        assert_eq!(view.bytes, counted(view.bytes.len()), "{name}");
    }
    assert_eq!(file.info("i32").unwrap().type_name, "I32");
    assert!(file.get("i32").is_err());
    let info = file.info("iq3_s").unwrap();
    assert_eq!((info.type_name, info.shape, info.bytes.unwrap()), ("IQ3_S", &[1, 256][..], counted(110).as_slice()));
}

#[test]
fn gguf_py_alignment_byte_order_and_parts() {
    let file = GgufFile::open(&fixture("aligned-64.gguf")).unwrap();
    assert_eq!(floats(&file.get("a").unwrap().unwrap().bytes), [0.0, 1.0, 2.0]);
    assert_eq!(floats(&file.get("b").unwrap().unwrap().bytes), [0.0, 1.0]);

    let error = GgufFile::open(&fixture("big-endian.gguf")).err().unwrap().to_string();
    assert!(error.contains("big-endian GGUF (version 3)"), "{error}");

    let file = GgufFile::open(&fixture("split-00002-of-00003.gguf")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(file.get_meta("general.architecture").unwrap().as_str(), Some("llama"));
    assert_eq!(floats(&file.get("c").unwrap().unwrap().bytes), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn numpy_safetensors() {
    let source = Source::open(&fixture("numpy.safetensors")).unwrap();
    let file = SafeTensors::from_sources(vec![source]).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["empty", "f16", "f32", "i64", "scalar"]);
    assert_eq!(file.metadata().get("note").unwrap(), "é \"quoted\"");
    assert_eq!(floats(&file.get("f32").unwrap().unwrap().bytes), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let scalar = file.get("scalar").unwrap().unwrap();
    assert_eq!((scalar.shape, floats(&scalar.bytes)), (&[][..], vec![2.5]));
    assert_eq!(file.get("empty").unwrap().unwrap().shape, [0, 3]);
    assert!(file.get("i64").unwrap_err().to_string().contains("tensor `i64` is stored as I64"));
}

#[test]
fn demo_model() {
    let dir: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "edgelm", "assets", "mica-5m"].iter().collect();
    let file = SafeTensors::open_dir(&dir).unwrap();
    let view = file.get("model.embed_tokens.weight").unwrap().unwrap();
    assert_eq!((view.dtype, view.shape), (DType::BF16, &[8192, 256][..]));
    assert!(file.names().all(|name| file.get(name).unwrap().is_some()));
}
