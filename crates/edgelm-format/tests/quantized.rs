//! Matrices of GPTQ, AWQ, FP8, bitsandbytes (8 bits) and MXFP4 (`testdata/quantized`, with their generator): what they mean is what
//! numpy says, and what is broken is refused.
#![allow(clippy::unwrap_used)]

use edgelm_format::{
    CodedMatrix, FormatError, Source,
    awq::AwqConfig,
    bitsandbytes::{Config, Int8Tensor},
    compressed_tensors,
    fp8::{Fp8Config, Fp8Tensor},
    gptq::GptqConfig,
    mxfp4::{self, Mxfp4Tensor},
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, block::decode_row};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/quantized")
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap()
}

fn opened(bytes: Vec<u8>) -> Result<SafeTensors, FormatError> {
    SafeTensors::from_sources(vec![Source::owned("m", bytes)])
}

/// The matrix of a module, as the config of its file says.
fn matrix<'a>(file: &'a SafeTensors, module: &str) -> Result<Option<Box<dyn CodedMatrix + 'a>>, FormatError> {
    fn boxed<'a>(found: Option<impl CodedMatrix + 'a>) -> Option<Box<dyn CodedMatrix + 'a>> {
        found.map(|found| Box::new(found) as Box<dyn CodedMatrix + 'a>)
    }
    let text = file.metadata().get("quantization_config").map_or("null", String::as_str);
    let config: Value = serde_json::from_str(text).unwrap_or_default();
    let path = Path::new("config.json");
    let weight = format!("{module}.weight");
    match config["quant_method"].as_str() {
        Some("gptq") => GptqConfig::from_json(&config, path)?.open(file, module).map(boxed),
        Some("awq") => AwqConfig::from_json(&config, path)?.open(file, module).map(boxed),
        Some("fp8") => Fp8Tensor::open(file, &weight, &Fp8Config::from_json(&config, path)?).map(boxed),
        Some("compressed-tensors") => {
            assert!(compressed_tensors::is_of_floats(&config));
            Fp8Tensor::open(file, &weight, &compressed_tensors::float_config(&config, path)?).map(boxed)
        }
        Some("bitsandbytes") => match Config::from_json(&config, path)? {
            Config::EightBit => Int8Tensor::open(file, module).map(boxed),
            other => panic!("{other:?}"),
        },
        Some("mxfp4") => {
            mxfp4::check_config(&config, path)?;
            Mxfp4Tensor::open(file, module).map(boxed)
        }
        _ => Ok(None),
    }
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    decode_row(dtype, bytes, &mut values).unwrap();
    values
}

#[test]
fn matrices_are_those_of_numpy() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = SafeTensors::from_sources(vec![Source::open(&path).unwrap()]).unwrap();
        let runs_as: serde_json::Map<String, Value> = serde_json::from_str(&file.metadata()["runs_as"]).unwrap();
        for (module, wanted) in runs_as {
            let name = format!("{} {module}", path.file_stem().unwrap().display());
            let found = matrix(&file, &module).unwrap().unwrap();
            let [n, k] = found.shape();
            let reference = file.get(&format!("{module}.dequantized")).unwrap().unwrap();
            assert_eq!(found.full_shape(), reference.shape, "{name}");
            let reference = decoded(DType::F32, &reference.bytes);
            let mut values = vec![0.0; n * k];
            found.values(0..n, &mut values);
            assert_eq!(values, reference, "{name}");
            found.values(1..3, &mut values[..2 * k]);
            assert_eq!(values[..2 * k], reference[k..3 * k], "{name}");

            assert_eq!(found.dtype().name(), wanted, "{name}");
            let blocks = found.blocks(0..n);
            assert_eq!(blocks.len(), n * found.dtype().row_bytes(k).unwrap(), "{name}");
            assert_eq!(found.blocks(2..4), blocks[2 * blocks.len() / n..4 * blocks.len() / n], "{name}");
            // F16 rounds values, scales of bitsandbytes are rounded to it.
            let is_exact = !matches!(wanted.as_str().unwrap(), "F16") && !name.starts_with("bnb");
            let largest = reference.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (got, want) in decoded(found.dtype(), &blocks).iter().zip(&reference) {
                let tolerance = if is_exact { 0.0 } else { largest / 2000.0 };
                assert!((got - want).abs() <= tolerance, "{name}: {got} {want}");
            }

            let reordered = found.reordered();
            assert_eq!(reordered.is_some(), name.contains("act-order"), "{name}");
            if let Some(reordered) = reordered {
                let dtype = if name.starts_with("gptq-4") { DType::Q5_0 } else { DType::Q4_0 };
                assert_eq!((reordered.dtype, found.reordered_dtype()), (dtype, Some(dtype)), "{name}");
                let ordered = decoded(reordered.dtype, &reordered.bytes);
                for (at, got) in ordered.iter().enumerate() {
                    let column = reordered.order[at % k] as usize;
                    assert_eq!(*got, reference[at / k * k + column], "{name}: row {} column {column}", at / k);
                }
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 18);
}

/// Opens every matrix of a file, and reads it in every way there is.
fn read(bytes: Vec<u8>) -> Result<usize, String> {
    let text = |error: FormatError| error.to_string();
    let file = opened(bytes).map_err(text)?;
    let mut found = 0;
    for module in ["m", "odd", "e"] {
        let Some(matrix) = matrix(&file, module).map_err(text)? else { continue };
        let [n, k] = matrix.shape();
        let mut values = vec![0.0; n * k];
        matrix.values(0..n, &mut values);
        assert_eq!(matrix.blocks(0..n).len(), n * matrix.dtype().row_bytes(k).unwrap());
        matrix.reordered();
        found += 1;
    }
    if found == 0 { Err("there is none".to_owned()) } else { Ok(found) }
}

#[test]
fn altered_files_are_errors_or_other_numbers() {
    for name in ["gptq-4-act-order", "gptq-3-zeros-v2", "awq", "fp8-rows", "bnb-8", "mxfp4"] {
        let bytes = bytes_of(name);
        read(bytes.clone()).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut state = 7u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let mut refused = 0;
        for _ in 0..2000 {
            let mut altered = bytes.clone();
            for _ in 0..=next(3) {
                // Digits of shapes and offsets, mostly; and the values after them, groups of inputs among these.
                let range = if next(3) > 0 { header } else { altered.len() };
                let at = 8 + next(range - 8);
                altered[at] = if altered[at].is_ascii_digit() { b'0' + next(10) as u8 } else { next(256) as u8 };
            }
            refused += usize::from(read(altered).is_err());
        }
        assert!(refused > 500, "{name}: {refused}");
        for length in (0..bytes.len()).step_by(197) {
            assert!(read(bytes[..length].to_vec()).is_err());
        }
    }
}

/// The message of a file with a piece of text replaced by one as long, so that offsets stay.
fn message(name: &str, from: &str, to: &str) -> String {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes_of(name);
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    read(bytes).unwrap_err()
}

#[test]
fn what_is_missing_or_of_another_shape_is_named() {
    for (name, from, to, part) in [
        ("gptq-4", "m.qzeros", "m.qzeras", "`qzeros` is missing"),
        ("gptq-4", "m.scales", "m.scalas", "`scales` is missing"),
        ("gptq-4-act-order", "m.g_idx", "m.g_adx", "`g_idx` is missing"),
        ("gptq-4", "\\\"group_size\\\": 32", "\\\"group_size\\\": 48", "`qzeros` has shape [3, 4] for 2 groups"),
        ("gptq-4", "\\\"bits\\\": 4", "\\\"bits\\\": 3", "`qzeros` has shape [3, 4]"),
        ("gptq-4", "\\\"bits\\\": 4", "\\\"bits\\\": 5", "`bits` 5 is not supported"),
        ("awq", "m.qzeros", "m.qzeras", "`qzeros` is missing"),
        ("awq", "\\\"group_size\\\": 32", "\\\"group_size\\\": 16", "for 4 groups"),
        ("fp8-blocks", "m.weight_scale_inv", "m.weight_scala_inv", "`weight_scale_inv` is missing"),
        ("fp8-blocks", "[16, 32]", "[20, 32]", "scales have shape [3, 3]"),
        ("fp8-rows", "F8_E4M3", "F8_E5M2", "F8_E5M2"),
        ("bnb-8", "m.SCB", "m.SCC", "`SCB` is missing"),
        ("mxfp4", "e_scales", "e_scalas", "`e_scales` is missing"),
    ] {
        let error = message(name, from, to);
        assert!(error.contains(part), "{name} {from}: {error}");
    }
}

#[test]
fn groups_that_do_not_exist_are_named() {
    let mut bytes = bytes_of("gptq-4-act-order");
    let file = opened(bytes.clone()).unwrap();
    let groups = file.info("m.g_idx").unwrap().bytes.unwrap();
    let start = bytes.windows(groups.len()).position(|part| part == groups).unwrap();
    bytes[start + 4 * 5..][..4].copy_from_slice(&3i32.to_le_bytes());
    assert!(read(bytes.clone()).unwrap_err().contains("`g_idx` names group 3 of 3 for input 5"));
    bytes[start + 4 * 5..][..4].copy_from_slice(&(-1i32).to_le_bytes());
    assert!(read(bytes).unwrap_err().contains("`g_idx` names group -1 of 3 for input 5"));
}

#[test]
fn what_configs_may_not_say_is_named() {
    let path = Path::new("config.json");
    let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
    let awq = json!({ "quant_method": "awq", "bits": 4, "group_size": 128 });
    let fp8 = json!({ "quant_method": "fp8" });
    let mxfp4 = json!({ "quant_method": "mxfp4" });
    let bnb = json!({ "quant_method": "bitsandbytes", "load_in_8bit": true });
    let weights = |kind: &str, bits: u32, strategy: &str| {
        json!({ "group_0": { "targets": ["Linear"], "weights": {
        "type": kind, "num_bits": bits, "strategy": strategy, "block_structure": null, "symmetric": true } } })
    };
    let floats = json!({ "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": weights("float", 8, "channel") });
    let parse = |config: &Value| -> Result<(), FormatError> {
        match config["quant_method"].as_str() {
            Some("gptq") => GptqConfig::from_json(config, path).map(drop),
            Some("awq") => AwqConfig::from_json(config, path).map(drop),
            Some("fp8") => Fp8Config::from_json(config, path).map(drop),
            Some("mxfp4") => mxfp4::check_config(config, path),
            Some("compressed-tensors") => compressed_tensors::float_config(config, path).map(drop),
            _ => Config::from_json(config, path).map(drop),
        }
    };
    for (config, key, value, part) in [
        (&gptq, "bits", json!(5), "`bits` 5"),
        (&gptq, "group_size", json!(0), "`group_size` is 0"),
        (&gptq, "group_size", json!(-2), "`group_size` is -2"),
        (&gptq, "checkpoint_format", json!("marlin"), "`checkpoint_format` `marlin`"),
        (&gptq, "pack_dtype", json!("int16"), "`pack_dtype` `int16`"),
        (&gptq, "is_marlin_format", json!(true), "`is_marlin_format`"),
        (&gptq, "dynamic", json!("-:.*"), "`dynamic`"),
        (&gptq, "adapter", json!({ "name": "lora" }), "`adapter`"),
        (&gptq, "unheard_of", Value::Null, "unheard_of"),
        (&awq, "bits", json!(8), "`bits` 8"),
        (&awq, "dynamic", json!({ "-:.*": {} }), "`dynamic`"),
        (&awq, "version", json!("gemv"), "`version` `gemv`"),
        (&awq, "unheard_of", Value::Null, "unheard_of"),
        (&fp8, "fmt", json!("e5m2"), "`fmt` `e5m2`"),
        (&fp8, "weight_block_size", json!([128]), "`weight_block_size` is [128]"),
        (&fp8, "kv_cache_scheme", json!({ "num_bits": 8 }), "`kv_cache_scheme`"),
        (&fp8, "unheard_of", Value::Null, "unheard_of"),
        (&floats, "config_groups", weights("float", 4, "channel"), "type `float` and 4 bits"),
        (&floats, "config_groups", weights("int", 8, "channel"), "type `int` and 8 bits"),
        (&floats, "config_groups", weights("float", 8, "block"), "strategy `block`"),
        (&floats, "config_groups", json!({}), "`config_groups` is empty"),
        (&floats, "unheard_of", Value::Null, "unheard_of"),
        (&mxfp4, "unheard_of", Value::Null, "unheard_of"),
        (&bnb, "load_in_4bit", json!(true), "neither or both"),
        (&bnb, "unheard_of", Value::Null, "unheard_of"),
    ] {
        parse(config).unwrap();
        let mut config = config.clone();
        config[key] = value;
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("quantization_config"), "{key}: {error}");
    }
}

#[test]
fn configs_of_the_tools_are_read() {
    let path = Path::new("config.json");
    let gptq = |config: Value| GptqConfig::from_json(&config, path).unwrap();
    // GPTQModel says some things twice.
    let gptq_model = json!({ "bits": 4, "dynamic": { "+:.*down_proj": { "bits": 8, "group_size": 64 } }, "group_size": 128,
        "desc_act": false, "lm_head": false, "method": "gptq", "quant_method": "gptq", "format": "gptq",
        "checkpoint_format": "gptq", "pack_dtype": "int32", "sym": true,
        "meta": { "quantizer": ["gptqmodel:7.7.0"], "damp_percent": 0.05, "fallback": null, "gc_mode": "interval" } });
    let mut torn = gptq_model.clone();
    torn["format"] = json!("gptq_v2");
    let error = GptqConfig::from_json(&torn, path).unwrap_err().to_string();
    assert!(error.contains("`format`") && error.contains("the same thing"), "{error}");
    let group_size = Some(128);
    let wanted = GptqConfig { bits: 4, group_size, desc_act: false, is_v2: false, varies: true };
    assert_eq!(gptq(gptq_model), wanted);
    let auto_round = json!({ "amp": false, "autoround_version": "0.16.1", "bits": 4, "damp_percent": 0.01,
        "data_type": "int", "desc_act": false, "group_size": 128, "iters": 2, "lm_head": false, "provider": "auto-round",
        "quant_method": "gptq", "sym": false, "true_sequential": false });
    assert_eq!(gptq(auto_round), GptqConfig { varies: false, ..wanted });
    let awq = |config: Value| AwqConfig::from_json(&config, path).unwrap();
    let auto_round = json!({ "amp": false, "autoround_version": "0.16.1", "bits": 4, "data_type": "int", "group_size": 128,
        "iters": 2, "modules_to_not_convert": ["lm_head"], "provider": "auto-round", "quant_method": "awq", "sym": false,
        "to_quant_block_names": "model.layers", "version": "gemm", "zero_point": true });
    assert_eq!(awq(auto_round), AwqConfig { group_size });
    let gptq_model = json!({ "bits": 4, "group_size": 128, "desc_act": false, "lm_head": false, "method": "awq",
        "quant_method": "awq", "format": "gemm", "checkpoint_format": "gemm", "pack_dtype": "int32", "zero_point": false,
        "version": "gemm", "meta": {} });
    assert_eq!(awq(gptq_model), AwqConfig { group_size });
}

#[test]
fn shapes_say_bits_and_groups_where_modules_differ() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(file) = Source::open(&path).and_then(|source| SafeTensors::from_sources(vec![source])) else { continue };
        let text = file.metadata().get("quantization_config").map_or("null", String::as_str);
        let config: Value = serde_json::from_str(text).unwrap_or_default();
        if config["quant_method"] != "gptq" {
            continue;
        }
        let said = GptqConfig::from_json(&config, &path).unwrap();
        let runs_as: serde_json::Map<String, Value> = serde_json::from_str(&file.metadata()["runs_as"]).unwrap();
        for module in runs_as.keys() {
            let values = |config: GptqConfig| {
                let found = config.open(&file, module)?.unwrap();
                let [n, k] = found.shape();
                let mut values = vec![0.0; n * k];
                found.values(0..n, &mut values);
                Ok::<_, FormatError>(values)
            };
            let other = GptqConfig { bits: if said.bits == 4 { 8 } else { 4 }, ..said };
            let wanted = values(said).unwrap();
            assert_eq!(values(GptqConfig { varies: true, ..other }).unwrap(), wanted, "{} {module}", path.display());
            assert!(values(other).is_err(), "{} {module}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
}
