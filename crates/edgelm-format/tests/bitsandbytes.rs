//! 4-bit weights in safetensors: what is packed comes back, and what is broken is refused.
#![allow(clippy::unwrap_used)]

use edgelm_format::{
    CodedMatrix, Source,
    bitsandbytes::{Config, FourBitConfig, LookupMatrix, LookupTensor, declare_lookup, pack_lookup},
    safetensors::{SafeTensors, Writer},
};
use edgelm_tensor::LookupFormat;
use half::f16;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/bitsandbytes/seeds");

#[test]
fn everything_that_is_packed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    for format in LookupFormat::ALL {
        for run in [32, 64, 192] {
            let matrix = LookupMatrix { format, run, shape: [21, 192] };
            let mut wanted = Vec::new();
            for block in 0..21 * 6 {
                let codes = std::array::from_fn(|i| (block * 5 + i * 7) as u8 % 16);
                format.write_block(f16::from_f32(0.01 * (1 + block * 32 / run) as f32), &codes, &mut wanted);
            }
            let mut writer =
                Writer::create_typed(&path, &declare_lookup("a.weight", &matrix), &BTreeMap::new()).unwrap();
            pack_lookup(&matrix, &wanted).iter().for_each(|part| writer.write(part).unwrap());
            writer.finish().unwrap();
            let file = SafeTensors::from_sources(vec![Source::open(&path).unwrap()]).unwrap();
            let found = LookupTensor::open(&file, "a.weight").unwrap().unwrap();
            assert_eq!((found.shape(), found.dtype()), ([21, 192], format.block_dtype()));
            assert!(found.blocks(0..21) == wanted, "{format:?} {run}");
            assert!(found.blocks(4..6) == wanted[4 * wanted.len() / 21..6 * wanted.len() / 21]);
            assert!(LookupTensor::open(&file, "b.weight").unwrap().is_none());
            assert!(LookupTensor::open(&file, "a.weight.absmax").unwrap().is_none());
        }
        let config = FourBitConfig { format, skipped: vec!["lm_head".to_owned()] };
        assert_eq!(Config::from_json(&config.to_json(), Path::new("config.json")).unwrap(), Config::FourBit(config));
    }
}

/// Opens and reads the matrix.
fn read(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let file = SafeTensors::from_sources(vec![Source::owned("m", bytes)]).map_err(|error| error.to_string())?;
    let found = LookupTensor::open(&file, "w").map_err(|error| error.to_string())?;
    let found = found.ok_or("there is none")?;
    let blocks = found.blocks(0..found.shape()[0]);
    assert_eq!(blocks.len(), found.shape()[0] * found.dtype().row_bytes(found.shape()[1]).unwrap());
    Ok(blocks)
}

#[test]
fn altered_files_are_errors_or_other_numbers() {
    for name in ["nf4", "nf4-double", "fp4"] {
        let bytes = std::fs::read(Path::new(SEEDS).join(format!("{name}.safetensors"))).unwrap();
        read(bytes.clone()).unwrap();
        let mut state = 7u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let mut refused = 0;
        for _ in 0..4000 {
            let mut altered = bytes.clone();
            for _ in 0..=next(3) {
                // Digits of shapes, offsets and the quantization state, mostly.
                let at = 8 + next(altered.len() - 8);
                altered[at] = if altered[at].is_ascii_digit() { b'0' + next(10) as u8 } else { next(256) as u8 };
            }
            refused += usize::from(read(altered).is_err());
        }
        assert!(refused > 1000, "{name}: {refused}");
        for length in (0..bytes.len()).step_by(97) {
            assert!(read(bytes[..length].to_vec()).is_err());
        }
    }
}

#[test]
fn what_is_not_supported_is_named() {
    // As long as what it replaces, so that offsets stay.
    let with = |name: &str, from: &str, to: &str| {
        let bytes = std::fs::read(Path::new(SEEDS).join(format!("{name}.safetensors"))).unwrap();
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut altered = bytes;
        altered[at..at + from.len()].copy_from_slice(to.as_bytes());
        read(altered).unwrap_err()
    };
    for (name, from, to, part) in [
        ("nf4", "\"blocksize\": 32", "\"blocksize\": 48", "48"),
        ("nf4", "\"blocksize\": 32", "\"blocksize\": 00", "quant_state"),
        ("nf4", "\"blocksize\": 32", "\"blocksize\": 64", "`absmax` is F32 [8], must be F32 [4]"),
        ("nf4", "\"shape\": [4, 64]", "\"shape\": [5, 64]", "does not hold [5, 64]"),
        ("nf4", "\"shape\": [4, 64]", "\"shape\": [4000] ", "not that of a matrix"),
        ("nf4", "\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", "must be `nf4`"),
        ("nf4", "w.quant_map", "w.quant_mop", "`quant_map` is missing"),
        ("nf4-double", "w.nested_absmax", "w.nested_absmox", "`nested_absmax` is missing"),
        ("nf4-double", "\"nested_offset\"", "\"nested_offsat\"", "nested_offsat"),
    ] {
        let error = with(name, from, to);
        assert!(error.contains(part), "{from} → {to}: {error}");
    }
    // Another table.
    let mut bytes = std::fs::read(Path::new(SEEDS).join("nf4.safetensors")).unwrap();
    let one = 0.722_956_84f32.to_le_bytes();
    let at = bytes.windows(4).position(|part| part == one).unwrap();
    bytes[at..at + 4].copy_from_slice(&0.7f32.to_le_bytes());
    assert!(read(bytes).unwrap_err().contains("not the table of nf4"));

    let config = FourBitConfig { format: LookupFormat::Nf4, skipped: Vec::new() }.to_json();
    for (key, value, part) in [
        ("load_in_4bit", json!(false), "neither or both"),
        ("load_in_8bit", json!(true), "neither or both"),
        ("bnb_4bit_quant_type", json!("int4"), "int4"),
        ("bnb_4bit_quant_storage", json!("bfloat16"), "bfloat16"),
        ("unheard_of", Value::Null, "unheard_of"),
    ] {
        let mut config = config.clone();
        config[key] = value;
        let error = Config::from_json(&config, Path::new("config.json")).unwrap_err().to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
}
