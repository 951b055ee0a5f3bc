//! Every rule of the safetensors reader, broken once.
#![allow(clippy::unwrap_used)]

mod raw;

use edgelm_format::{FormatError, Source, safetensors::SafeTensors};
use edgelm_tensor::DType;

fn open(bytes: Vec<u8>) -> Result<SafeTensors, FormatError> {
    SafeTensors::from_sources(vec![Source::owned("model.safetensors", bytes)])
}

#[track_caller]
fn check(result: Result<SafeTensors, FormatError>, parts: &[&str]) {
    let message = result.err().expect("accepted").to_string();
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[track_caller]
fn refused(header: &str, data_bytes: usize, parts: &[&str]) {
    let result = open(raw::safetensors(header, data_bytes));
    let mut parts = parts.to_vec();
    parts.push("`model.safetensors`: ");
    check(result, &parts);
}

/// A directory of `(name, dtype, shape, offsets)` in JSON.
fn directory(tensors: &[(&str, &str, &str, &str)]) -> String {
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, offsets)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

#[test]
fn small_file_reads() {
    let file = open(raw::small_safetensors()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "i"]);
    assert_eq!(file.metadata().get("format").unwrap(), "pt");
    let view = file.get("a").unwrap().unwrap();
    assert_eq!((view.dtype, view.shape, &*view.bytes), (DType::F32, &[2, 1][..], &[2, 3, 4, 5, 6, 7, 8, 9][..]));
    assert!(file.get("none").unwrap().is_none() && file.info("none").is_none());
    assert_eq!(file.file_bytes(), raw::small_safetensors().len() as u64);
    assert!(file.source_of("a").is_some() && file.source_of("none").is_none());
}

#[test]
fn other_dtypes_are_listed_but_have_no_view() {
    for (dtype, bytes) in [("I64", 16), ("U8", 2), ("BOOL", 2), ("F8_E4M3", 2), ("F4", 1), ("F64", 16), ("U64", 16)] {
        let header = directory(&[("t", dtype, "[2]", &format!("[0,{bytes}]"))]);
        let file = open(raw::safetensors(&header, bytes)).unwrap();
        let error = file.get("t").unwrap_err();
        assert!(matches!(error, FormatError::Unsupported { .. }));
        assert!(error.to_string().contains(&format!("tensor `t` is stored as {dtype}")), "{error}");
        let info = file.info("t").unwrap();
        assert_eq!((info.type_name, info.dtype, info.shape), (dtype, None, &[2][..]));
        assert_eq!(info.bytes.unwrap().len(), bytes);
    }
    refused(&directory(&[("t", "F7", "[1]", "[0,1]")]), 1, &["tensor `t`", "unknown dtype `F7`"]);
    refused(&directory(&[("t", "F4", "[1]", "[0,1]")]), 1, &["tensor `t`", "not whole bytes"]);
}

#[test]
fn header_length() {
    check(open(vec![]), &["too few"]);
    check(open(vec![1, 0, 0, 0, 0, 0, 0]), &["too few"]);
    for length in [u64::MAX, 1 << 63, 100_000_001] {
        check(open(length.to_le_bytes().to_vec()), &["over the limit"]);
    }
    check(open(100_000_000_u64.to_le_bytes().to_vec()), &["ends inside the header"]);
    check(open(vec![3, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']), &["ends inside the header"]);
}

#[test]
fn header_json() {
    refused("", 0, &["does not start"]);
    refused(" {}", 0, &["does not start"]);
    refused("[]", 0, &["does not start"]);
    refused("{", 0, &["header"]);
    refused("{} x", 0, &["trailing"]);
    refused("{\"a\":1}", 0, &["`a`"]);
    refused("{\"\u{1}\":1}", 0, &["header"]);
    refused(&"{\"a\":".repeat(100_000), 0, &["header"]);
    refused(&format!("{{\"a\":{}", "[".repeat(100_000)), 0, &["header"]);
    assert_eq!(open(raw::safetensors("{}      ", 0)).unwrap().names().count(), 0);
    let mut not_utf8 = raw::safetensors("{\"aa\":1}", 0);
    not_utf8[10] = 0xff;
    check(open(not_utf8), &["header"]);
    refused(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}"#, 4, &["`a`", "`x`"]);
    refused(r#"{"a":{"dtype":"F32","shape":[]}}"#, 0, &["`a`", "data_offsets"]);
    refused(r#"{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4, &["`a`", "duplicate"]);
    for shape in ["[-1]", "[1.5]", "[18446744073709551616]", "1", "null", "[\"1\"]"] {
        refused(&directory(&[("a", "F32", shape, "[0,4]")]), 4, &["`a`"]);
    }
    for offsets in ["[0]", "[0,4,8]", "[-4,0]", "0", "[0,18446744073709551616]"] {
        refused(&directory(&[("a", "F32", "[1]", offsets)]), 4, &["`a`"]);
    }
    let many = format!("[{}1]", "1,".repeat(64));
    refused(&directory(&[("a", "F32", &many, "[0,4]")]), 4, &["`a`", "more than 64 dimensions"]);
}

#[test]
fn duplicates() {
    let twice = directory(&[("a", "F32", "[1]", "[0,4]"), ("a", "F32", "[1]", "[4,8]")]);
    refused(&twice, 8, &["duplicate name `a`"]);
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["duplicate name `__metadata__`"]);
    refused(r#"{"__metadata__":{"k":"1","k":"1"}}"#, 0, &["__metadata__", "duplicate key `k`"]);
    refused(r#"{"__metadata__":{"k":1}}"#, 0, &["__metadata__", "string"]);
    assert!(open(raw::safetensors(r#"{"__metadata__":null}"#, 0)).is_ok());
}

#[test]
fn layout() {
    let two = |first: &str, second: &str| directory(&[("a", "F32", "[1]", first), ("b", "F32", "[1]", second)]);
    // Listed in any order.
    let file = open(raw::safetensors(&two("[4,8]", "[0,4]"), 8)).unwrap();
    assert_eq!(file.get("a").unwrap().unwrap().bytes, &[4, 5, 6, 7][..]);
    refused(&two("[0,4]", "[2,6]"), 8, &["`b`", "overlaps", "`a`"]);
    refused(&two("[0,4]", "[0,4]"), 8, &["`b`", "overlaps", "`a`"]);
    refused(&two("[0,4]", "[5,9]"), 9, &["`b`", "4..5", "no tensor"]);
    refused(&two("[4,8]", "[8,12]"), 12, &["`a`", "0..4", "no tensor"]);
    refused(&two("[0,4]", "[4,8]"), 7, &["`b`", "truncated"]);
    refused(&two("[0,4]", "[4,8]"), 9, &["last 1 bytes"]);
    refused(&two("[0,4]", "[8,4]"), 8, &["`b`", "backwards"]);
    refused(&two("[0,4]", "[18446744073709551615,3]"), 8, &["`b`", "backwards"]);
    refused(&directory(&[("a", "F32", "[2]", "[0,4]")]), 4, &["`a`", "8 bytes"]);
    for shape in ["[4294967296,4294967296]", "[9223372036854775808,2,0]", "[0,9223372036854775808,2]"] {
        refused(&directory(&[("a", "U8", shape, "[0,0]")]), 0, &["`a`", "overflows"]);
    }
    refused(&directory(&[("a", "F64", "[4611686018427387904]", "[0,0]")]), 0, &["`a`", "overflows"]);
}

#[test]
fn zero_sized_dimensions_are_allowed() {
    let header = directory(&[
        ("a", "F32", "[0,3]", "[0,0]"),
        ("b", "F32", "[1]", "[0,4]"),
        ("c", "F16", "[3,0]", "[4,4]"),
        ("d", "F16", "[]", "[4,6]"),
    ]);
    let file = open(raw::safetensors(&header, 6)).unwrap();
    assert_eq!(file.get("a").unwrap().unwrap().bytes, &b""[..]);
    assert_eq!(file.get("c").unwrap().unwrap().elements(), 0);
    assert_eq!(file.get("d").unwrap().unwrap().elements(), 1);
}

#[test]
fn shards_may_not_repeat_names() {
    let shard = |name: &str| Source::owned(name, raw::small_safetensors());
    check(SafeTensors::from_sources(vec![shard("one"), shard("two")]), &["`two`", "tensor `a`", "`one`"]);
}

/// Whatever is accepted here is accepted by the reference reader, with equal views.
#[track_caller]
fn agrees_with_reference(bytes: &[u8]) {
    let Ok(ours) = open(bytes.to_vec()) else { return };
    let theirs = ::safetensors::SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(ours.names().count(), theirs.len());
    for (name, view) in theirs.iter() {
        let info = ours.info(name).unwrap();
        assert_eq!((info.type_name, info.shape), (view.dtype().to_string().as_str(), view.shape()));
        assert_eq!(info.bytes.unwrap(), view.data());
    }
}

#[test]
fn agrees_with_the_reference_reader() {
    let valid = raw::small_safetensors();
    agrees_with_reference(&valid);
    for position in 0..valid.len() {
        for byte in [0, b' ', b'"', b'0', b'1', b'9', b'a', b'{', b'}', 0xff] {
            let mut bytes = valid.clone();
            bytes[position] = byte;
            agrees_with_reference(&bytes);
        }
    }
}

mod folders {
    use super::*;
    use std::{fs, path::Path};

    fn shard(name: &str) -> Vec<u8> {
        raw::safetensors(&directory(&[(name, "F32", "[1]", "[0,4]")]), 4)
    }

    fn folder(index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("s1.safetensors"), shard("a")).unwrap();
        fs::write(dir.path().join("s2.safetensors"), shard("b")).unwrap();
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        dir
    }

    #[track_caller]
    fn refused(index: &str, parts: &[&str]) {
        check(SafeTensors::open_dir(folder(index).path()), parts);
    }

    #[test]
    fn single_file() {
        let dir = tempfile::tempdir().unwrap();
        check(SafeTensors::open_dir(dir.path()), &["neither"]);
        check(SafeTensors::open_dir(Path::new("/nonexistent/folder")), &["/nonexistent/folder"]);
        fs::write(dir.path().join("model.safetensors"), shard("a")).unwrap();
        assert_eq!(SafeTensors::open_dir(dir.path()).unwrap().names().count(), 1);
    }

    #[test]
    fn index() {
        let dir = folder(r#"{"metadata":{"total_size":1e9},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#);
        let file = SafeTensors::open_dir(dir.path()).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert!(file.source_of("b").unwrap().path().ends_with("s2.safetensors"));
        assert_eq!(file.file_bytes(), 2 * shard("a").len() as u64);

        refused("{}", &["index.json", "weight_map"]);
        refused(r#"{"weight_map":{"a":"s1.safetensors","b":"s3.safetensors"}}"#, &["s3.safetensors", "open failed"]);
        refused(r#"{"weight_map":{"a":"s1.safetensors","b":"../s2.safetensors"}}"#, &["`b`", "plain file name"]);
        refused(r#"{"weight_map":{"a":"s1.safetensors","b":"s1.safetensors"}}"#, &["tensor `b`", "s1.safetensors"]);
        refused(r#"{"weight_map":{"a":"s2.safetensors","b":"s1.safetensors"}}"#, &["tensor `a`", "another shard"]);
        refused(
            r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"}}"#,
            &["index.json", "tensor `c`", "`s2.safetensors`"],
        );
        let dir = folder(r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#);
        fs::write(
            dir.path().join("s2.safetensors"),
            raw::safetensors(&directory(&[("b", "F32", "[1]", "[0,4]"), ("x", "U8", "[1]", "[4,5]")]), 5),
        )
        .unwrap();
        check(SafeTensors::open_dir(dir.path()), &["tensor `x`", "`s2.safetensors`", "not in the index"]);
    }
}
