//! Integers in safetensors: what is packed comes back, and what is broken is refused.
#![allow(clippy::unwrap_used)]

use edgelm_format::{
    CodedMatrix, Source,
    compressed_tensors::{
        Activations, Group, IntQuantization, IntTensor, Packing, SparseTensor, Strategy, declare_matrix, pack_matrix,
    },
    safetensors::{SafeTensors, Writer},
};
use edgelm_tensor::{IntBlock, IntFormat};
use half::f16;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/compressed-tensors/packed");

/// Blocks of `[n, k]` whose scales and zeros are equal within runs.
fn blocks(format: IntFormat, [n, k]: [usize; 2], strategy: Strategy) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..n {
        for block in 0..k / 32 {
            let run = match strategy {
                Strategy::Tensor => 0,
                Strategy::Channel => row,
                Strategy::Group(size) => row * 5 + block * 32 / size,
            };
            let range = i32::from(format.high()) - i32::from(format.low()) + 1;
            let is_zero = |i: usize| format.is_sparse() && (i + i / 4 + row) % 4 < 2;
            let code = |i: usize| match is_zero(i) {
                true => 0,
                false => (i32::from(format.low()) + ((row * 7 + block * 11 + i * 13) as i32) % range) as i8,
            };
            let of_run = (i32::from(format.low()) + (run * 3) as i32 % range) as i8;
            let zero = if format.is_symmetric() { 0 } else { of_run };
            let scale = f16::from_f32(0.01 * (run % 9 + 1) as f32);
            format.write_block(&IntBlock { scale, zero, codes: std::array::from_fn(code) }, &mut out);
        }
    }
    out
}

#[test]
fn everything_that_is_packed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let shape = [21, 128];
    for bits in 2..=8 {
        for (symmetric, sparse) in [(true, false), (true, true), (false, false)] {
            let Some(dense) = IntFormat::new(bits, symmetric) else { continue };
            let Some(format) = (if sparse { dense.sparse() } else { Some(dense) }) else { continue };
            for strategy in [Strategy::Tensor, Strategy::Channel, Strategy::Group(64), Strategy::Group(32)] {
                for (packing, activations) in [
                    (Packing::Words, Activations::Any),
                    (Packing::Bytes, Activations::Dynamic),
                    (Packing::Bytes, Activations::Static),
                ] {
                    let group = Group { targets: vec!["Linear".to_owned()], format, strategy, activations, packing };
                    let wanted = blocks(format, shape, strategy);
                    let declared = declare_matrix("a.b", &group, shape);
                    let mut writer = Writer::create_typed(&path, &declared, &BTreeMap::new()).unwrap();
                    for part in pack_matrix(&group, shape, &wanted, 0.25).parts {
                        writer.write(&part).unwrap();
                    }
                    writer.finish().unwrap();
                    let bitmask = sparse && packing == Packing::Bytes;
                    let modules = if bitmask { group.targets.clone() } else { Vec::new() };
                    let quantization =
                        IntQuantization { groups: vec![group.clone()], ignore: Vec::new(), sparse: modules };
                    let json = quantization.to_json();
                    let config = IntQuantization::from_json(&json, Path::new("config.json")).unwrap();
                    assert_eq!(config, quantization);
                    let file = SafeTensors::from_sources(vec![Source::open(&path).unwrap()]).unwrap();
                    let found = IntTensor::open(&file, "a.b", &config.groups[0]).unwrap().unwrap();
                    assert_eq!((found.shape(), found.dtype()), (shape, format.block_dtype()));
                    assert!(found.blocks(0..shape[0]) == wanted, "{group:?}");
                    assert!(found.blocks(4..6) == wanted[4 * wanted.len() / 21..6 * wanted.len() / 21]);
                    assert_eq!(found.input_scale(), (activations == Activations::Static).then_some(0.25));
                    assert!(IntTensor::open(&file, "a.c", &group).unwrap().is_none());
                }
            }
        }
    }
}

fn fixture() -> (Value, Vec<u8>) {
    let config = std::fs::read(Path::new(FIXTURE).join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    (config["quantization_config"].clone(), std::fs::read(Path::new(FIXTURE).join("model.safetensors")).unwrap())
}

/// Opens and reads all matrices; how many there were.
fn read(config: &Value, bytes: Vec<u8>) -> Result<usize, String> {
    let config = IntQuantization::from_json(config, Path::new("config.json")).map_err(|error| error.to_string())?;
    let file = SafeTensors::from_sources(vec![Source::owned("m", bytes)]).map_err(|error| error.to_string())?;
    let mut count = 0;
    let modules: Vec<String> = file.names().filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned())).collect();
    for module in modules {
        let Some(group) = config.group_of(&module, "Linear") else { continue };
        if let Some(found) = IntTensor::open(&file, &module, group).map_err(|error| error.to_string())? {
            let rows = found.shape()[0];
            assert_eq!(found.blocks(0..rows).len(), rows * found.dtype().row_bytes(found.shape()[1]).unwrap());
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn wrong_masks_of_sparse_weights_are_errors() {
    let folder = Path::new(FIXTURE).with_file_name("sparse-24");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let config = IntQuantization::from_json(&config["quantization_config"], &folder).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let open = |bytes: &[u8], module: &str| {
        let file = SafeTensors::from_sources(vec![Source::owned("m", bytes.to_vec())]).unwrap();
        let group = config.group_of(module, "Linear").unwrap();
        let ints = IntTensor::open(&file, module, group).map(|found| found.is_some());
        ints.and_then(|found| Ok(found || SparseTensor::open(&file, module)?.is_some()))
    };
    for module in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"] {
        assert!(open(&bytes, module).unwrap());
        let at = entries[format!("{module}.bitmask")]["data_offsets"][0].as_u64().unwrap() as usize;
        for wrong in [0b0011_0111, 0b0111_0011, 0b0011_0001, 0] {
            let mut altered = bytes.clone();
            altered[header + at + 13] = wrong;
            let error = open(&altered, module).unwrap_err().to_string();
            assert!(error.contains(module) && error.contains("two of every four bits in row 1"), "{error}");
        }
        // Another shape than that of the values.
        let at = entries[format!("{module}.shape")]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut altered = bytes.clone();
        altered[header + at] += 1;
        assert!(open(&altered, module).unwrap_err().to_string().contains("two of every four of"));
    }
}

#[test]
fn altered_files_are_errors_or_other_numbers() {
    let (config, bytes) = fixture();
    assert!(read(&config, bytes.clone()).unwrap() > 0);
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut state = 7u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut refused = 0;
    for round in 0..4000 {
        let mut altered = bytes.clone();
        for _ in 0..=next(3) {
            // Digits of shapes and offsets, mostly; and `weight_shape`, which is data.
            let at = if round % 3 == 0 { header + next(bytes.len() - header) } else { 8 + next(header - 8) };
            altered[at] = if altered[at].is_ascii_digit() { b'0' + next(10) as u8 } else { next(256) as u8 };
        }
        refused += usize::from(read(&config, altered).is_err());
    }
    assert!(refused > 1000, "{refused}");
    for length in (0..bytes.len()).step_by(997) {
        assert!(read(&config, bytes[..length].to_vec()).is_err());
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let (config, bytes) = fixture();
    let with = |path: &str, value: Value| {
        let mut config = config.clone();
        *config.pointer_mut(path).unwrap() = value;
        read(&config, bytes.clone()).unwrap_err()
    };
    for (path, value, part) in [
        ("/quant_method", json!("gptq"), "gptq"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
        ("/sparsity_config", json!({"format": "sparse-bitmask"}), "`sparsity_config`: format `sparse-bitmask`"),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask", "sparsity_structure": "4:8"}), "4:8"),
        ("/config_groups", json!({}), "config_groups"),
        ("/config_groups/group_0/targets", json!(["re:.*q_proj"]), "re:.*q_proj"),
        ("/config_groups/group_0/weights/type", json!("float"), "float"),
        ("/config_groups/group_0/weights/num_bits", json!(16), "16 bits"),
        ("/config_groups/group_0/weights/actorder", json!("group"), "actorder"),
        ("/config_groups/group_0/weights/strategy", json!("block"), "block"),
        ("/config_groups/group_0/format", json!("nvfp4-pack-quantized"), "nvfp4"),
        ("/config_groups/group_0/weights/num_bits", json!(5), "asymmetric weights of 5 bits"),
        ("/config_groups/group_0/weights/num_bits", json!(2), "numbers of 2 bits"),
        ("/config_groups/group_0/weights/symmetric", json!("yes"), "invalid type"),
    ] {
        let error = with(path, value);
        assert!(error.contains(part), "{path}: {error}");
    }
}
