//! What the writers write, the readers read back; wrong use of a writer leaves no file behind.
#![allow(clippy::unwrap_used)]

use edgelm_format::{
    FormatError,
    gguf::{self, Array, GgufFile, Metadata, Value},
    safetensors::{self, SafeTensors},
};
use edgelm_tensor::DType;
use proptest::{collection::vec, prelude::*};
use std::{collections::BTreeMap, path::Path};

type Tensors = Vec<(String, DType, Vec<usize>)>;

fn bytes_of(dtype: DType, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() / dtype.block_len() * dtype.block_bytes()
}

/// Recognizable content, different for every tensor.
fn content(index: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + index * 7) as u8).collect()
}

/// Writes content in pieces of `piece` bytes.
fn fill(tensors: &Tensors, piece: usize, mut write: impl FnMut(&[u8]) -> Result<(), FormatError>) {
    for (index, (_, dtype, shape)) in tensors.iter().enumerate() {
        content(index, bytes_of(*dtype, shape)).chunks(piece).for_each(|chunk| write(chunk).unwrap());
    }
}

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex(".{0,12}").unwrap()
}

fn array() -> impl Strategy<Value = Array> {
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..5).prop_map(Array::U8),
        vec(any::<i8>(), 0..5).prop_map(Array::I8),
        vec(any::<u16>(), 0..5).prop_map(Array::U16),
        vec(any::<i16>(), 0..5).prop_map(Array::I16),
        vec(any::<u32>(), 0..5).prop_map(Array::U32),
        vec(any::<i32>(), 0..5).prop_map(Array::I32),
        vec(any::<f32>(), 0..5).prop_map(Array::F32),
        vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        vec(text(), 0..5).prop_map(Array::String),
        vec(any::<u64>(), 0..5).prop_map(Array::U64),
        vec(any::<i64>(), 0..5).prop_map(Array::I64),
        vec(any::<f64>(), 0..5).prop_map(Array::F64),
    ];
    // Depth 3 of inner levels below the outermost makes the limit of 4.
    leaf.prop_recursive(3, 12, 3, |inner| vec(inner, 0..3).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        text().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        array().prop_map(Value::Array),
    ]
}

/// Distinct names by a prefix; shapes of whole blocks.
fn tensors(dtypes: Vec<DType>) -> impl Strategy<Value = Tensors> {
    let one = (text(), proptest::sample::select(dtypes), vec(0..4_usize, 0..=4));
    vec(one, 0..6).prop_map(|tensors| {
        let finish = |(index, (name, dtype, mut shape)): (usize, (String, DType, Vec<usize>))| {
            match shape.last_mut() {
                Some(row) => *row *= dtype.block_len(),
                None if dtype.is_quantized() => shape.push(dtype.block_len()),
                None => {}
            }
            (format!("{index}{name}"), dtype, shape)
        };
        tensors.into_iter().enumerate().map(finish).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf_files(
        values in vec((text(), value()), 0..8),
        tensors in tensors(DType::all().filter(|dtype| dtype.gguf_id().is_some()).collect()),
        alignment in proptest::option::of(0..10_u32),
        piece in 1..5000_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut metadata: Metadata =
            values.into_iter().enumerate().map(|(index, (key, value))| (format!("{index}{key}"), value)).collect();
        if let Some(alignment) = alignment {
            metadata.push(("general.alignment".into(), Value::U32(1 << alignment)));
        }
        let mut writer = gguf::Writer::create(&path, &metadata, &tensors).unwrap();
        fill(&tensors, piece, |bytes| writer.write(bytes));
        let size = writer.finish().unwrap();
        prop_assert_eq!(size, std::fs::metadata(&path).unwrap().len());

        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.names().collect::<Vec<_>>(), tensors.iter().map(|t| t.0.as_str()).collect::<Vec<_>>());
        for (index, (name, dtype, shape)) in tensors.iter().enumerate() {
            let view = file.get(name).unwrap().unwrap();
            prop_assert_eq!((view.dtype, view.shape), (*dtype, shape.as_slice()));
            prop_assert_eq!(&*view.bytes, content(index, bytes_of(*dtype, shape)));
        }
    }

    #[test]
    fn safetensors_files(
        metadata in proptest::collection::btree_map(text(), text(), 0..4),
        tensors in tensors(vec![DType::F32, DType::F16, DType::BF16]),
        piece in 1..100_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = safetensors::Writer::create(&path, &tensors, &metadata).unwrap();
        fill(&tensors, piece, |bytes| writer.write(bytes));
        let size = writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        prop_assert_eq!(size, bytes.len() as u64);

        let file = SafeTensors::open_dir(dir.path()).unwrap();
        let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.names().count(), tensors.len());
        prop_assert_eq!(reference.len(), tensors.len());
        for (index, (name, dtype, shape)) in tensors.iter().enumerate() {
            let view = file.get(name).unwrap().unwrap();
            prop_assert_eq!((view.dtype, view.shape), (*dtype, shape.as_slice()));
            prop_assert_eq!(&*view.bytes, content(index, bytes_of(*dtype, shape)));
            prop_assert_eq!(reference.tensor(name).unwrap().data(), &*view.bytes);
        }
    }
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

fn one(name: &str, dtype: DType, shape: &[usize]) -> Tensors {
    vec![(name.into(), dtype, shape.to_vec())]
}

#[test]
fn wrong_byte_counts_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let tensors = one("t", DType::F32, &[2]);
    let gguf = || gguf::Writer::create(&path, &vec![], &tensors).unwrap();
    let safetensors = || safetensors::Writer::create(&path, &tensors, &BTreeMap::new()).unwrap();
    let message = |error: FormatError| error.to_string();

    let mut writer = gguf();
    let error = message(writer.write(&[0; 9]).unwrap_err());
    assert!(error.contains("tensor `t`") && error.contains("9 bytes"), "{error}");
    writer.write(&[0; 7]).unwrap();
    assert!(message(writer.finish().unwrap_err()).contains("tensor `t`: 1 of 8 bytes are missing"));

    let mut writer = safetensors();
    writer.write(&[0; 8]).unwrap();
    assert!(message(writer.write(&[0]).unwrap_err()).contains("after the last tensor"));
    drop(writer);
    assert!(message(safetensors().finish().unwrap_err()).contains("8 of 8 bytes are missing"));
    drop(gguf());
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn gguf_writer_refuses_what_readers_would() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let refused = |metadata: Metadata, tensors: Tensors, part: &str| {
        let error = gguf::Writer::create(&path, &metadata, &tensors).err().expect("accepted").to_string();
        assert!(error.contains(part) && error.contains("model.gguf"), "{error}");
    };
    let key = |key: &str, value: Value| vec![(key.to_owned(), value)];
    refused(key("", Value::U8(1)), vec![], "key");
    refused([key("k", Value::U8(1)), key("k", Value::U8(1))].concat(), vec![], "`k`");
    refused(key("general.alignment", Value::U32(12)), vec![], "general.alignment");
    refused(key("general.alignment", Value::U64(32)), vec![], "general.alignment");
    let deep = (0..4).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    refused(key("k", Value::Array(deep)), vec![], "nest deeper");
    refused(vec![], one("t", DType::Q4_K, &[2, 128]), "`t`");
    refused(vec![], one("t", DType::F32, &[1, 1, 1, 1, 1]), "`t`");
    refused(vec![], one("t", DType::F32, &[usize::MAX, 2]), "`t`");
    refused(vec![], one("t", DType::F32, &[usize::MAX / 2]), "`t`");
    refused(vec![], one(&"t".repeat(64), DType::F32, &[1]), "too long");
    refused(vec![], [one("t", DType::F32, &[1]), one("t", DType::F32, &[1])].concat(), "`t`");
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn safetensors_writer_refuses_what_readers_would() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let refused = |tensors: Tensors, part: &str| {
        let error = safetensors::Writer::create(&path, &tensors, &BTreeMap::new()).err().expect("accepted").to_string();
        assert!(error.contains(part) && error.contains("model.safetensors"), "{error}");
    };
    refused(one("t", DType::Q8_0, &[32]), "Q8_0");
    refused(one("__metadata__", DType::F32, &[1]), "__metadata__");
    refused(one("t", DType::F32, &[usize::MAX, 2]), "`t`");
    refused(one("t", DType::F32, &[1; 65]), "`t`");
    refused([one("t", DType::F32, &[1]), one("t", DType::F32, &[1])].concat(), "`t`");
    assert_eq!(entries(dir.path()), 0);
}
