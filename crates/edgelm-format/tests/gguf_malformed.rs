//! Every rule of the GGUF reader, broken once.
#![allow(clippy::unwrap_used)]

mod raw;

use edgelm_format::{
    FormatError, Source,
    gguf::{Array, GgufFile, Value},
};
use raw::{Gguf, string};

fn open(bytes: Vec<u8>) -> Result<GgufFile, FormatError> {
    GgufFile::from_source(Source::owned("model.gguf", bytes))
}

/// The error names the file and holds all of `parts`.
#[track_caller]
fn refused(file: &Gguf, parts: &[&str]) {
    let message = open(file.build()).err().expect("accepted").to_string();
    assert!(message.starts_with("`model.gguf`: "), "{message}");
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn small_file_reads() {
    let file = open(raw::small_gguf()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["f32", "q8"]);
    assert_eq!(file.get_meta("general.architecture").unwrap().as_str(), Some("llama"));
    assert_eq!(file.get_meta("n").unwrap().as_u64(), Some(7));
    assert_eq!(file.get_meta("s").unwrap().as_strings().unwrap(), ["a", "é"]);
    assert_eq!(file.get_meta("nested"), Some(&Value::Array(Array::Array(vec![Array::I32(vec![1, 2])]))));
    assert_eq!(file.get_meta("none"), None);
    let view = file.get("f32").unwrap().unwrap();
    assert_eq!((view.shape, view.rows(), view.row_len()), (&[2, 3][..], 2, 3));
    assert_eq!(view.bytes, (0..24).collect::<Vec<u8>>());
    assert_eq!(file.get("q8").unwrap().unwrap().bytes, (32..66).collect::<Vec<u8>>());
    assert!(file.get("none").unwrap().is_none());
    assert!(file.source_of("q8").is_some() && file.source_of("none").is_none());
    assert_eq!(file.file_bytes(), raw::small_gguf().len() as u64);
}

#[test]
fn magic_and_versions() {
    let mut file = Gguf::new();
    file.magic = *b"ggjt";
    refused(&file, &["not a GGUF file"]);
    for (version, part) in [
        (0, "version 0"),
        (1, "version 1"),
        (4, "version 4"),
        (3_u32.swap_bytes(), "big-endian GGUF (version 3)"),
        (2_u32.swap_bytes(), "big-endian GGUF (version 2)"),
    ] {
        file = Gguf::new();
        file.version = version;
        refused(&file, &[part, "not supported"]);
        assert!(matches!(open(file.build()), Err(FormatError::Unsupported { .. })));
    }
    file.version = 2;
    assert_eq!(open(file.build()).unwrap().names().count(), 0);
}

#[test]
fn counts_beyond_the_file() {
    let mut file = Gguf::new();
    for count in [1, 100, u64::MAX, 1 << 40] {
        file.tensor_count = Some(count);
        file.key_count = None;
        refused(&file, &["tensor count"]);
        file.tensor_count = None;
        file.key_count = Some(count);
        refused(&file, &["metadata count"]);
    }
    // Enough bytes for the count to pass, which then do not parse.
    let mut file = Gguf::new().data(400);
    file.key_count = Some(3);
    assert!(open(file.build()).is_err());
}

#[test]
fn metadata_keys() {
    refused(&Gguf::new().u32("a", 1).u32("b", 2).u32("a", 1), &["duplicate metadata key `a`"]);
    refused(&Gguf::new().u32("", 1), &["metadata entry 0", "0 bytes"]);
    refused(&Gguf::new().u32(&"k".repeat(65536), 1), &["65536 bytes"]);
    assert!(open(Gguf::new().u32(&"k".repeat(65535), 1).build()).is_ok());
    let mut not_utf8 = string(b"a\xff");
    not_utf8.extend([4, 0, 0, 0, 0, 0, 0, 0]);
    refused(&Gguf::new().raw_key(&not_utf8), &["metadata entry 0", "UTF-8"]);
    let mut long = u64::MAX.to_le_bytes().to_vec();
    long.extend([b'x'; 100]);
    refused(&Gguf::new().raw_key(&long), &["metadata entry 0", "18446744073709551615"]);
}

#[test]
fn metadata_values() {
    refused(&Gguf::new().key("k", 13, &[0; 8]), &["key `k`", "unknown value type 13"]);
    refused(&Gguf::new().key("k", 7, &[2]).data(64), &["key `k`", "2 is not a bool"]);
    refused(&Gguf::new().key("k", 8, &string(b"\xff")), &["key `k`", "UTF-8"]);
    refused(&Gguf::new().key("k", 8, &1000_u64.to_le_bytes()), &["key `k`", "1000"]);
    let array = |element: u32, count: u64, rest: &[u8]| {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(rest);
        Gguf::new().key("k", 9, &bytes)
    };
    refused(&array(13, 0, &[]), &["key `k`", "element type 13"]);
    refused(&array(4, u64::MAX, &[]), &["key `k`", "array length"]);
    refused(&array(4, 1 << 62, &[]), &["key `k`", "array length"]);
    refused(&array(8, 1 << 61, &[]), &["key `k`", "array length"]);
    refused(&array(9, 1 << 61, &[]), &["key `k`", "array length"]);
    refused(&array(8, 1, &string(b"\xff")), &["key `k`", "element 0", "UTF-8"]);
    refused(&array(7, 1, &[9]), &["key `k`", "bool"]);
    assert!(open(array(4, 0, &[]).build()).is_ok());
}

#[test]
fn nested_arrays_have_a_limit() {
    let nested = |depth: usize| {
        let mut bytes = Vec::new();
        for _ in 1..depth {
            bytes.extend(9_u32.to_le_bytes());
            bytes.extend(1_u64.to_le_bytes());
        }
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        Gguf::new().key("k", 9, &bytes)
    };
    assert!(open(nested(4).build()).is_ok());
    refused(&nested(5), &["key `k`", "nest deeper"]);
    refused(&nested(100_000), &["key `k`", "nest deeper"]);
}

#[test]
fn alignment() {
    for bad in [0, 3, 48, u32::MAX, 1 << 21] {
        refused(&Gguf::new().u32("general.alignment", bad), &["general.alignment", &bad.to_string()]);
    }
    refused(&Gguf::new().key("general.alignment", 10, &64_u64.to_le_bytes()), &["general.alignment"]);
    let mut file = Gguf::new().u32("general.alignment", 64).tensor("t", &[2], 0, 64).data(72);
    file.alignment = 64;
    assert_eq!(open(file.build()).unwrap().get("t").unwrap().unwrap().bytes[0], 64);
    let mut misaligned = Gguf::new().u32("general.alignment", 64).tensor("t", &[2], 0, 32).data(72);
    misaligned.alignment = 64;
    refused(&misaligned, &["tensor `t`", "offset 32", "alignment 64"]);
}

#[test]
fn tensor_names_and_shapes() {
    let data = |file: Gguf| file.data(4096);
    refused(&data(Gguf::new().tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32)), &["duplicate tensor name `t`"]);
    refused(&data(Gguf::new().tensor("t", &[1, 1, 1, 1, 1], 0, 0)), &["tensor `t`", "5 dimensions"]);
    let huge_count = {
        let mut bytes = string(b"t");
        bytes.extend(u32::MAX.to_le_bytes());
        let mut file = Gguf::new().data(4096);
        file.tensor_count = Some(1);
        file.raw_key(&bytes)
    };
    let mut huge_count = huge_count;
    huge_count.key_count = Some(0);
    refused(&huge_count, &["tensor `t`", "4294967295 dimensions"]);
    for dims in [&[1 << 32, 1 << 32][..], &[u64::MAX, 2], &[1 << 62, 4, 1, 0], &[1 << 62], &[1 << 62, 0]] {
        refused(&data(Gguf::new().tensor("t", dims, 0, 0)), &["tensor `t`", "overflows"]);
    }
    refused(&data(Gguf::new().tensor("t", &[1 << 62, 4], 99, 0)), &["tensor `t`", "overflows"]);
    refused(&data(Gguf::new().tensor("t", &[33, 2], 8, 0)), &["tensor `t`", "33", "Q8_0 blocks of 32"]);
    // 64 values, but rows of 16.
    refused(&data(Gguf::new().tensor("t", &[16, 4], 8, 0)), &["tensor `t`", "rows of 16"]);
    refused(&data(Gguf::new().tensor("t", &[128], 12, 0)), &["tensor `t`", "Q4_K blocks of 256"]);
    let scalar = open(data(Gguf::new().tensor("t", &[], 0, 0)).build()).unwrap();
    assert_eq!(scalar.get("t").unwrap().unwrap().elements(), 1);
    let none = open(data(Gguf::new().tensor("t", &[4, 0], 0, 0)).build()).unwrap();
    assert_eq!(none.get("t").unwrap().unwrap().bytes, &b""[..]);
    let four = open(data(Gguf::new().tensor("t", &[4, 3, 2, 1], 0, 0)).build()).unwrap();
    assert_eq!(four.get("t").unwrap().unwrap().shape, [1, 2, 3, 4]);
}

#[test]
fn tensor_positions() {
    refused(&Gguf::new().tensor("t", &[8], 0, 4).data(4096), &["tensor `t`", "offset 4", "multiple"]);
    refused(&Gguf::new().tensor("t", &[8], 0, 32).data(63), &["tensor `t`", "truncated"]);
    refused(&Gguf::new().tensor("t", &[8], 0, 4096).data(64), &["tensor `t`", "offset 4096", "truncated"]);
    refused(&Gguf::new().tensor("t", &[8], 0, u64::MAX - 31).data(64), &["tensor `t`", "truncated"]);
    refused(&Gguf::new().tensor("a", &[9], 0, 0).tensor("b", &[8], 0, 32).data(64), &["`b`", "overlaps", "`a`"]);
    refused(&Gguf::new().tensor("a", &[8], 0, 32).tensor("b", &[40], 0, 0).data(256), &["`a`", "overlaps", "`b`"]);
    refused(&Gguf::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(64), &["overlaps"]);
    // A type of unknown size still may not begin inside another tensor.
    refused(&Gguf::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 99, 32).data(64), &["`b`", "overlaps"]);
    // Order in the directory is free, gaps and trailing bytes do no harm.
    let file = Gguf::new().tensor("b", &[8], 0, 64).tensor("a", &[8], 0, 0).data(200).build();
    assert_eq!(open(file).unwrap().names().collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn types_without_a_decoder_can_be_listed() {
    let file = Gguf::new().tensor("known", &[256], 19, 0).tensor("i", &[2], 26, 128).tensor("new", &[7], 99, 160);
    let file = open(file.data(192).build()).unwrap();
    assert_eq!(file.names().count(), 3);
    let info = file.info("known").unwrap();
    assert_eq!((info.type_name, info.dtype, info.bytes.unwrap().len()), ("IQ1_S", None, 50));
    assert_eq!(file.info("i").unwrap().bytes.unwrap().len(), 8);
    let info = file.info("new").unwrap();
    assert_eq!((info.type_name, info.shape, info.bytes), ("type 99", &[7][..], None));
    let message = |name: &str| file.get(name).unwrap_err().to_string();
    assert!(message("known").contains("tensor `known` is stored as IQ1_S (GGUF type id 19)"));
    assert!(message("new").contains("tensor `new`") && message("new").contains("99"));
    assert!(file.info("none").is_none());
    refused(&Gguf::new().tensor("t", &[512], 19, 0).data(99), &["tensor `t`", "truncated"]);
}

#[test]
fn long_names_are_cut_in_messages() {
    let name = "x\n".repeat(10_000);
    refused(&Gguf::new().tensor(&name, &[8], 0, 4).data(64), &["x\\n", "…"]);
}

mod split {
    use super::*;
    use std::path::Path;

    fn part(number: u16, count: u16, tensor: &str) -> Gguf {
        let total = 3_i32.to_le_bytes();
        Gguf::new().u16("split.no", number).u16("split.count", count).key("split.tensors.count", 5, &total).tensor(
            tensor,
            &[2],
            0,
            0,
        )
    }

    fn write(dir: &Path, number: usize, file: &Gguf) {
        std::fs::write(dir.join(format!("m-{number:05}-of-00003.gguf")), file.clone().data(8).build()).unwrap();
    }

    /// A valid set; the tests break one thing each.
    fn valid() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1, &part(0, 3, "a").u32("general.x", 5));
        write(dir.path(), 2, &part(1, 3, "b"));
        write(dir.path(), 3, &part(2, 3, "c").u32("general.x", 5));
        dir
    }

    #[track_caller]
    fn refused(dir: &Path, parts: &[&str]) {
        let message = GgufFile::open(&dir.join("m-00001-of-00003.gguf")).err().expect("accepted").to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    #[test]
    fn any_part_opens_all() {
        let dir = valid();
        for number in 1..=3 {
            let file = GgufFile::open(&dir.path().join(format!("m-{number:05}-of-00003.gguf"))).unwrap();
            assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "c"]);
            assert_eq!(file.get("c").unwrap().unwrap().bytes.len(), 8);
            assert!(file.source_of("b").unwrap().path().ends_with("m-00002-of-00003.gguf"));
            assert!(file.path().ends_with("m-00001-of-00003.gguf"));
            assert_eq!(file.get_meta("general.x").unwrap().as_u64(), Some(5));
            let sizes = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(file.file_bytes(), sizes.sum::<u64>());
        }
    }

    #[test]
    fn broken_sets() {
        let dir = valid();
        std::fs::remove_file(dir.path().join("m-00002-of-00003.gguf")).unwrap();
        refused(dir.path(), &["m-00002-of-00003.gguf", "open failed"]);

        for (file, parts) in [
            (part(0, 3, "b"), ["m-00002", "split.no"]),
            (part(1, 2, "b"), ["m-00002", "split.count"]),
            (Gguf::new().tensor("b", &[2], 0, 0), ["m-00002", "split.no"]),
            (part(1, 3, "a"), ["m-00002", "`a`"]),
            (part(1, 3, "b").u32("general.x", 6), ["m-00002", "`general.x`"]),
            (part(1, 3, "b").u32("general.y", 6), ["m-00002", "`general.y`"]),
            (part(1, 3, "b").tensor("d", &[0], 0, 0), ["m-00001", "split.tensors.count"]),
        ] {
            let dir = valid();
            write(dir.path(), 2, &file);
            refused(dir.path(), &parts);
        }

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("renamed.gguf");
        std::fs::write(&path, part(0, 3, "a").data(8).build()).unwrap();
        assert!(GgufFile::open(&path).err().unwrap().to_string().contains("renamed.gguf"));
        std::fs::write(&path, part(0, 1, "a").data(8).build()).unwrap();
        assert_eq!(GgufFile::open(&path).unwrap().names().count(), 1);
        let text = Gguf::new().key("split.count", 8, &string(b"3"));
        std::fs::write(&path, text.build()).unwrap();
        assert!(GgufFile::open(&path).err().unwrap().to_string().contains("split.count"));
    }

    #[test]
    fn a_part_in_memory_is_refused() {
        let error = open(part(0, 3, "a").data(8).build()).err().unwrap();
        assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
    }
}
